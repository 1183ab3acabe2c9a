"""Nothing secret is where others may read it, after a whole job with credentials of its own."""

from __future__ import annotations

import gzip
import json
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from airflow_slurm_provider.coordinator.services import Services, open_services, open_transport
from airflow_slurm_provider.coordinator.site import load_site
from slurm_worker.keys import JobId
from tests.e2e.conftest import Slurmctl, write_yaml
from tests.stack.settings import ROOT, SECRET_KEY
from tests.stack.state_folder import state_folder

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

BUCKET = "secrets-test"
ROLE = "arn:aws:iam::123456789012:role/nodes"


@dataclass(frozen=True)
class Ended:
    """A job that is over, and the secrets that were at work in it."""

    job_id: JobId
    services: Services
    slurmctl: Slurmctl
    secrets: tuple[str, ...]
    mode: str
    said: str


@pytest.fixture(scope="module")
def ended(
    environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ended]:
    """STS, S3 and the table are those of one server here: it takes the keys that it minted."""
    folder = tmp_path_factory.mktemp("secrets")
    site = yaml.safe_load(Path(environment["SLURMCTL_CONFIG"]).read_text())
    endpoint = environment["AWS_ENDPOINT_URL_DYNAMODB"]
    site["storage"]["prefix"] = f"s3://{BUCKET}/lab"
    site["aws"] = {
        **site.get("aws", {}),
        "s3_endpoint_url": endpoint,
        "dynamodb_endpoint_url": endpoint,
        "sts_endpoint_url": endpoint,
        "node_role_arn": ROLE,
    }
    s3 = boto3.client("s3", endpoint_url=endpoint)
    s3.create_bucket(Bucket=BUCKET)
    slurmctl = Slurmctl(
        {**environment, "SLURMCTL_CONFIG": str(write_yaml(folder / "s.yaml", site))}
    )
    job_id = JobId(f"secrets-{uuid.uuid4().hex[:8]}")
    (folder / "items.jsonl").write_text("".join(f'{{"id": "k{n}"}}\n' for n in range(20)))
    (folder / "handler.py").write_text("def handle(item, context):\n    return {'n': 1}\n")
    config = {
        "job_id": job_id,
        "input": {"path": "items.jsonl", "key": "id"},
        "bundle": 5,
        "handler": {"entry": "handler:handle", "code": "."},
        "slurm": {"mem": "300M", "time": "00:10:00"},
    }
    done = slurmctl("submit", write_yaml(folder / "job.yaml", config), "--wait")
    assert done.returncode == 0, done.stderr
    services = open_services(load_site(folder / "s.yaml"))
    transport = open_transport(services.site.cluster)
    where = f"{services.site.cluster.remote_dir.removeprefix('~/')}/jobs/{job_id}"
    minted = json.loads(transport.run(f"cat {where}/credentials.json").stdout)
    yield Ended(
        job_id,
        services,
        slurmctl,
        (SECRET_KEY, minted["SecretAccessKey"], minted["SessionToken"]),
        transport.run(f"stat -c %a {where}/credentials.json").stdout.strip(),
        done.stdout + done.stderr,
    )
    transport.close()
    services.close()


def test_a_job_runs_with_credentials_of_its_own_that_only_its_account_can_read(
    ended: Ended,
) -> None:
    status: dict[str, Any] = ended.slurmctl.json("status", ended.job_id)
    assert (status["ok"], status["complete"]) == (20, True)
    assert ended.mode == "600"


def test_no_secret_is_on_the_cluster_but_in_its_file(ended: Ended) -> None:
    transport = open_transport(ended.services.site.cluster)
    try:
        where = ended.services.site.cluster.remote_dir.removeprefix("~/")
        found = transport.run(
            f"cd {where}/jobs/{ended.job_id} && find . -type f ! -name credentials.json "
            "-exec cat {} +"
        ).stdout
        found += transport.run("scontrol show job; sacct -nP -S now-1days -o ALL").stdout
    finally:
        transport.close()
    assert "#SBATCH" in found, "the script was looked at"
    assert_free_of(ended, found)


def test_no_secret_is_in_the_table_the_bucket_or_what_was_printed(ended: Ended) -> None:
    site = ended.services.site
    table = boto3.client("dynamodb", endpoint_url=site.aws.dynamodb_endpoint_url)
    pages = table.get_paginator("scan").paginate(TableName=site.storage.table)
    rows = [row for page in pages for row in page["Items"] if ended.job_id in row["pk"]["S"]]
    assert rows
    assert_free_of(ended, str(rows))
    objects = list(ended.services.objects.list(ended.services.paths(ended.job_id).root))
    logs = [key for key in objects if key.endswith(".jsonl.gz")]
    assert logs, "the worker's log was shipped"
    for key in objects:
        data = ended.services.objects.get(key) or b""
        text = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        assert_free_of(ended, text.decode(errors="replace"))
    assert_free_of(ended, ended.said)
    for command in ("status", "logs"):
        assert_free_of(ended, ended.slurmctl(command, ended.job_id).stdout)


def test_no_secret_is_in_airflows_logs_or_database(ended: Ended) -> None:
    """What other tests' DAG runs have left: XComs, rendered fields, logs."""
    home = state_folder(ROOT) / "airflow"
    files = [*home.glob("airflow.db*"), *(home / "logs").rglob("*.log")]
    assert files
    ended_with = subprocess.run(
        ["grep", "-lF", SECRET_KEY, *map(str, files)], capture_output=True, text=True, check=False
    )
    assert ended_with.stdout == ""


def assert_free_of(ended: Ended, text: str) -> None:
    for secret in ended.secrets:
        assert secret not in text

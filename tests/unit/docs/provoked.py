"""Every message of the troubleshooting page, and what a user does that has it said.

Each function does the mistake, on services in memory or a login node in this process, and gives
the message back as it is printed. What differs from machine to machine is ``…`` on the page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import paramiko
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from airflow_slurm_provider.coordinator.maintenance.bootstrap.steps import open_clients
from airflow_slurm_provider.coordinator.spec.site import parse_site
from airflow_slurm_provider.coordinator.submission.credentials import put_credentials
from airflow_slurm_provider.slurm.client import SlurmClient
from airflow_slurm_provider.slurm.ssh import open_paramiko
from airflow_slurm_provider.slurm.transport import LocalTransport
from slurm_worker import FatalError
from slurm_worker.backends.clock import AwsClock
from slurm_worker.backends.dynamodb import DynamoRows, dynamo_client
from slurm_worker.backends.s3 import S3Objects, s3_client
from slurm_worker.errors import SlurmWorkerError
from slurm_worker.execution.calls import ItemTimeout
from slurm_worker.execution.handler import load
from slurm_worker.protocol.job_config import HandlerConfig
from slurm_worker.results.parts import to_lines
from tests.unit.answers import (
    Answer,
    dynamo_refusal,
    page_of_a_proxy,
    s3_refusal,
    serving,
    session,
)
from tests.unit.cli.conftest import Cli, write_config
from tests.unit.coordinator import fakes
from tests.unit.coordinator.maintenance.test_repair import lose_everything
from tests.unit.coordinator.submission.test_credentials import Sts, edges_with
from tests.unit.slurm.fake_slurm import FakeSlurm, Time
from tests.unit.slurm.ssh_server import LoginNode, closed_port
from tests.unit.world import JOB

SUBMIT = ("submit", "config.yaml")


@dataclass(frozen=True)
class Bench:
    """What mistakes are made on; the working directory is `folder`, with a good config in it."""

    cli: Cli
    folder: Path
    patch: pytest.MonkeyPatch

    def said(self, *words: str) -> str:
        """The last line on stderr of a command that fails."""
        ended = self.cli(*words)
        assert ended.code != 0, ended.out
        return ended.err.splitlines()[-1]

    def done(self, *words: str) -> None:
        ended = self.cli(*words)
        assert ended.code == 0, ended.err

    def problem(self, *words: str) -> str:
        """What a command that waits in vain names as the problem."""
        return self.cli(*words).fields["problem"]


Provoke = Callable[[Bench], str]


def config(**changes: Any) -> Provoke:
    """Submit a config with these settings."""

    def provoke(bench: Bench) -> str:
        write_config(bench.folder, **changes)
        return bench.said(*SUBMIT)

    return provoke


def items(name: str, text: str, key: str = "id") -> Provoke:
    """Submit an input file that holds this."""

    def provoke(bench: Bench) -> str:
        write_config(bench.folder, input={"path": name, "key": key})
        (bench.folder / name).write_text(text)
        return bench.said(*SUBMIT)

    return provoke


def commands(*lines: str) -> Provoke:
    """Type these; the last of them fails."""

    def provoke(bench: Bench) -> str:
        for line in lines[:-1]:
            bench.done(*line.split())
        return bench.said(*lines[-1].split())

    return provoke


def told(prefix: str, call: Callable[[], object]) -> str:
    """The error of a call, as the program with this name prints it."""
    with pytest.raises(SlurmWorkerError) as caught:
        call()
    return f"{prefix}: {' '.join(str(caught.value).split())}"


def another_input(bench: Bench) -> str:
    bench.done(*SUBMIT)
    write_config(bench.folder, input={"path": "items.jsonl", "key": "id", "format": "jsonl"})
    return bench.said(*SUBMIT)


def another_bundle(bench: Bench) -> str:
    bench.done(*SUBMIT)
    write_config(bench.folder, bundle=7)
    return bench.said(*SUBMIT)


def lost_rows(bench: Bench) -> str:
    bench.done(*SUBMIT)
    bench.cli.work()
    lose_everything(bench.cli.services)
    return bench.said(*SUBMIT)


def no_python(bench: Bench) -> str:
    (bench.folder / "handler.py").write_text("def handle(item, context)\n    return item\n")
    return bench.said(*SUBMIT)


def site(text: str) -> Provoke:
    """Ask for a job with a site file that holds this."""

    def provoke(bench: Bench) -> str:
        (bench.folder / "site.yaml").write_text(text)
        return bench.said("status", "job-1", "--site", "site.yaml")

    return provoke


# --- SSH and Slurm ------------------------------------------------------------


def login(change: Callable[[LoginNode], object], user: str = "lab") -> Provoke:
    """Log in to a node after this has happened to it."""

    def provoke(bench: Bench) -> str:
        node = LoginNode(bench.folder)
        try:
            change(node)
            key, hosts = str(node.key_file), str(node.known_hosts)
            return told("slurmctl", lambda: open_paramiko("127.0.0.1", node.port, user, key, hosts))
        finally:
            node.close()

    return provoke


def nobody_listens(_bench: Bench) -> str:
    port = closed_port()
    return told("slurmctl", lambda: open_paramiko("127.0.0.1", port, "lab", None, None))


def new_host_key(node: LoginNode) -> None:
    node.trust(paramiko.ECDSAKey.generate())


def new_user_key(node: LoginNode) -> None:
    paramiko.ECDSAKey.generate().write_private_key_file(str(node.key_file))


def sbatch(mode: str, *switches: str) -> Provoke:
    """Submit an array where sbatch does this."""

    def provoke(bench: Bench) -> str:
        slurm, time = FakeSlurm(bench.folder / "slurm"), Time()
        slurm.mode(mode)
        for each in switches:
            slurm.set(each)
        remote = str(bench.folder / "remote")
        client = SlurmClient(slurm.transport(), remote, time.clock, time.sleep)
        return told("slurmctl", lambda: client.submit("job-1.r0s1.0a1b2c", "#!/bin/sh\n", "job-1"))

    return provoke


def no_sbatch(bench: Bench) -> str:
    transport = LocalTransport({"PATH": str(bench.folder)})
    return told("slurmctl", SlurmClient(transport, str(bench.folder)).version)


# --- AWS ----------------------------------------------------------------------


def no_table(bench: Bench) -> str:
    with mock_aws():
        rows = DynamoRows(dynamo_client(_session(bench)), "backfills", AwsClock())
        return told("slurmctl", lambda: rows.get("JOB#job-1", "META"))


def no_bucket(bench: Bench) -> str:
    with mock_aws():
        objects = S3Objects(s3_client(_session(bench)), "my-lab-backfills")
        return told("slurmctl", objects.verify)


def no_credentials(bench: Bench) -> str:
    without_credentials(bench)
    rows = DynamoRows(dynamo_client(), "backfills", AwsClock())
    return told("slurmctl", lambda: rows.get("JOB#job-1", "META"))


def half_a_key(bench: Bench) -> str:
    without_credentials(bench)
    bench.patch.setenv("AWS_ACCESS_KEY_ID", "testing")
    return told("slurmctl", lambda: open_clients(parse_site(fakes.SITE, "site")))


def no_such_profile(bench: Bench) -> str:
    without_credentials(bench)
    bench.patch.setenv("AWS_PROFILE", "my-lab")
    return told("slurmctl", lambda: open_clients(parse_site(fakes.SITE, "site")))


def without_credentials(bench: Bench) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        bench.patch.delenv(name, raising=False)
    bench.patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        bench.patch.setenv(name, "/dev/null")
    bench.patch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def role_refused(_bench: Bench) -> str:
    error = {"Error": {"Code": "AccessDenied", "Message": "not authorized"}}
    edges = edges_with(Sts(ClientError(error, "AssumeRole")), fakes.FakeSlurm())
    return told("slurmctl", lambda: put_credentials(edges, JOB))


def table_answers(answer: Answer) -> Provoke:
    """Read a row of a table that answers so."""

    def provoke(_bench: Bench) -> str:
        with serving(lambda _: answer) as server:
            rows = DynamoRows(dynamo_client(session(), server.url), "backfills", AwsClock())
            return told("slurmctl", lambda: rows.get("pk", "sk"))

    return provoke


def store_answers(answer: Answer) -> Provoke:
    """Write an object to a store that answers so."""

    def provoke(_bench: Bench) -> str:
        with serving(lambda _: answer) as server:
            objects = S3Objects(s3_client(session(), server.url), "lab")
            return told("slurmctl", lambda: objects.put("key", b"x"))

    return provoke


def _session(bench: Bench) -> boto3.Session:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        bench.patch.setenv(name, "testing")
    return boto3.Session(region_name="us-east-1")


# --- jobs ---------------------------------------------------------------------


def all_workers_died(bench: Bench) -> str:
    bench.done(*SUBMIT)
    bench.cli.slurm.end("101", "FAILED")
    return bench.problem("wait", "job-1")


def stopped(bench: Bench) -> str:
    def handle(_item: dict[str, Any], _context: Any) -> None:
        raise FatalError("the API key is wrong")

    bench.cli.world.handle = handle
    bench.done(*SUBMIT)
    bench.cli.work()
    return bench.problem("wait", "job-1")


def misfit(bench: Bench) -> str:
    write_config(bench.folder, aggregate={"schema": {"double": "string"}})
    bench.done(*SUBMIT)
    bench.cli.work()
    return bench.said("aggregate", "job-1")


# --- nodes and items ----------------------------------------------------------


def handler(entry: str) -> Provoke:
    """Start a worker whose handler is this."""

    def provoke(bench: Bench) -> str:
        world = bench.cli.world
        return told(
            "slurm-worker",
            lambda: load(HandlerConfig(entry), world.objects, world.paths, bench.folder),
        )

    return provoke


def setup_fails(bench: Bench) -> str:
    def setup(_context: Any) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/home/alice/.secrets/users-api")

    bench.cli.world.setup = setup
    bench.done(*SUBMIT)
    return told("slurm-worker", bench.cli.world.worker().run)


def result(value: object) -> Provoke:
    """Have a handler return this."""

    def provoke(_bench: Bench) -> str:
        return told("", lambda: to_lines("k1", value)).removeprefix(": ")

    return provoke


#: Words of the message, which are on the page once: what provokes it.
PROVOKED: dict[str, Provoke] = {
    "bundel: is not a known key": config(bundel=5),
    "is missing; add it": config(handler=None),
    "is not a whole number": config(bundle="many"),
    "is not a duration": config(worker={"item_timeout": "5 sec"}),
    "is not a rate": config(limits={"users-api": {"rate": "600 per minute"}}),
    "is not a known option": config(slurm={"partiton": "main"}),
    "is a number; quote it": config(slurm={"time": 43200}),
    "'2 gigs' is not a size": config(slurm={"mem": "2 gigs"}),
    "is set by airflow-slurm-provider": config(slurm={"extra_args": ["--array=0-9"]}),
    "is too short for lease.heartbeat": config(lease={"ttl": "10s", "heartbeat": "2s"}),
    "is not a job id": config(job_id="Users 2026"),
    "needs columns": config(worker={"part_format": "parquet"}),
    "name the job's YAML file": commands("submit absent.yaml"),
    "exists with another input": another_input,
    "items per task, not": another_bundle,
    "restore the rows with slurmctl": lost_rows,
    "has no handle.py": config(handler={"entry": "handle:handle", "code": "."}),
    "expected ':'": no_python,
    "does not define it": config(handler={"entry": "handler:handel", "code": "."}),
    "does not exist; did you mean": config(input={"path": "item.jsonl", "key": "id"}),
    "has no column": config(input={"path": "items.jsonl", "key": "idd"}),
    "is the key of row": items("twice.csv", "id,x\na,1\nb,2\nb,3\n"),
    "is not a known format": items("items.txt", "id\na\n"),
    "fields, but the header has": items("items.csv", "id,x\na,1,2\n"),
    "has no rows": items("items.csv", "id,x\n"),
    "name the site's file": commands("status job-1 --site absent.yaml"),
    "is no profile": commands("status job-1 --profile lab"),
    "cluster.host: is missing": site(
        "storage: {table: t, prefix: s3://lab/p}\ncluster: {user: a}\n"
    ),
    "can't be reached": nobody_listens,
    "is not known; compare and add it": login(lambda node: node.known_hosts.write_text("")),
    "is not the known one": login(new_host_key),
    "refused the login": login(new_user_key),
    "sbatch does not run": no_sbatch,
    "correct the slurm section": sbatch("refuse"),
    "when fewer jobs are in the queue": sbatch("full"),
    "it will not be submitted twice": sbatch("lost", "squeue-down", "sacct-down"),
    "there is no DynamoDB table": no_table,
    "there is no bucket": no_bucket,
    "Unable to locate credentials": no_credentials,
    "Partial credentials found": half_a_key,
    "The config profile": no_such_profile,
    "can't be assumed": role_refused,
    "the AWS credentials have expired": table_answers(
        dynamo_refusal(400, "ExpiredTokenException", "The security token is expired")
    ),
    "behind the service's": table_answers(
        dynamo_refusal(
            400,
            "InvalidSignatureException",
            "Signature expired: 20261130T100000Z is now earlier than 20261130T110000Z",
            {"Date": "Wed, 01 Jan 2150 00:00:00 GMT"},
        )
    ),
    "is in region eu-west-1": store_answers(
        s3_refusal(301, "PermanentRedirect", headers={"x-amz-bucket-region": "eu-west-1"})
    ),
    "it redirects to": store_answers(
        page_of_a_proxy(301, "Moved", {"Location": "https://s3.lab.example/"})
    ),
    "refuses the SDK's checksums": store_answers(
        s3_refusal(400, "InvalidArgument", "Unsupported header 'x-amz-checksum-crc32'")
    ),
    "there is no job": commands("status job-1"),
    "is left (2 FAILED)": all_workers_died,
    "the job is stopped": stopped,
    "resume it first": commands("submit config.yaml", "pause job-1", "workers job-1 --add 1"),
    "retry when it is complete": commands("submit config.yaml", "retry job-1"),
    "not finished after": commands("submit config.yaml", "wait job-1 --timeout 5"),
    "again if its workers have ended": commands("submit config.yaml", "aggregate job-1"),
    "aggregate: column": misfit,
    "can't be imported on the node": handler("absent_module:handle"),
    "has no function": handler("json:handle"),
    "setup() failed": setup_fails,
    "see item_timeout": lambda _bench: str(ItemTimeout(30)),
    "is not JSON": result({"mean": float("nan")}),
    "the handler returned int": result(5),
}

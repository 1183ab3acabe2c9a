"""Nothing secret is where others may read it, after a whole job with credentials of its own."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from airflow_slurm_provider.coordinator.services import Services, open_services, open_transport
from airflow_slurm_provider.coordinator.spec.site import load_site
from slurm_worker.protocol.keys import JobId
from tests.e2e.conftest import Slurmctl, write_yaml
from tests.stack.settings import ROOT, SECRET_KEY
from tests.stack.state_folder import state_folder

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

BUCKET = "secrets-test"
SECRET = "planted-in-the-environment-of-slurmctl"
#: What Airflow's processes, and shells, have in their environments.
PLANTED = dict.fromkeys(
    ("AIRFLOW__CORE__FERNET_KEY", "AIRFLOW_CONN_LAB", "VAULT_TOKEN", "OWN", "SBATCH_COMMENT"),
    SECRET,
)
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
    give_role(site, environment)
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


@pytest.mark.parametrize("transport", ["local", "embedded"])
def test_no_process_of_a_job_has_a_secret_of_its_submitter_in_its_environment(
    environment: Mapping[str, str], tmp_path: Path, transport: str
) -> None:
    if transport == "local" and shutil.which("sbatch") is None:
        pytest.skip("there is no Slurm here")
    site = yaml.safe_load(Path(environment["SLURMCTL_CONFIG"]).read_text())
    site["cluster"] = {"transport": transport, "remote_dir": str(tmp_path / "remote")}
    if transport == "local":
        give_role(site, environment)
    else:
        # Its workers get the keys of this environment, which S3 knows, but not in theirs.
        site["cluster"]["embedded_dir"] = str(tmp_path / "embedded")
    site_file = write_yaml(tmp_path / "site.yaml", site)
    job_id = f"secrets-{uuid.uuid4().hex[:8]}"
    began, go = tmp_path / "began", tmp_path / "go"
    (tmp_path / "items.jsonl").write_text('{"id": "a"}\n')
    (tmp_path / "handler.py").write_text(
        "import os, time\ndef handle(item, context):\n"
        "    open(context.params['began'], 'w').close()\n"
        "    while not os.path.exists(context.params['go']): time.sleep(0.1)\n    return {}\n"
    )
    config = {
        "job_id": job_id,
        "input": {"path": "items.jsonl", "key": "id"},
        "handler": {
            "entry": "handler:handle",
            "code": ".",
            "params": {"began": str(began), "go": str(go)},
        },
        "slurm": {"mem": "300M", "time": "00:10:00", "setup": ["export CHOSEN=given"]},
    }
    slurmctl = Slurmctl({**environment, **PLANTED, "SLURMCTL_CONFIG": str(site_file)})
    done = slurmctl("submit", write_yaml(tmp_path / "job.yaml", config))
    assert done.returncode == 0, done.stderr
    try:
        deadline = time.monotonic() + 120
        while not began.exists():
            assert time.monotonic() < deadline, slurmctl("logs", job_id).stdout
            time.sleep(0.2)
        found = processes_of(job_id)
    finally:
        go.touch()
    names = ("srun", "--config") if transport == "local" else ("--config",)
    for name in names:
        assert any(name in command for command, _ in found), found
    for command, variables in found:
        assert [each for each in (SECRET, SECRET_KEY) if each in variables] == [], command
        assert "CHOSEN=given" in variables or "slurm_script" in command
    assert slurmctl("wait", job_id).returncode == 0


def give_role(site: dict[str, Any], environment: Mapping[str, str]) -> None:
    """A site whose workers get credentials of their own, all from one server."""
    endpoint = environment["AWS_ENDPOINT_URL_DYNAMODB"]
    site["storage"]["prefix"] = f"s3://{BUCKET}/lab"
    site["aws"] = {
        **site.get("aws", {}),
        "s3_endpoint_url": endpoint,
        "dynamodb_endpoint_url": endpoint,
        "sts_endpoint_url": endpoint,
        "node_role_arn": ROLE,
    }
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)


def processes_of(job_id: str) -> list[tuple[str, str]]:
    """Command and environment of each process of the job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().decode(errors="replace")
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"SLURM_JOB_NAME={job_id}." in variables:
            found.append((command, variables))
    return found


def assert_free_of(ended: Ended, text: str) -> None:
    for secret in ended.secrets:
        assert secret not in text

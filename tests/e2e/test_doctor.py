"""`slurmctl doctor` against the stack: all well as it is, and each fault named where it is broken.

Every set-up is broken beside the stack, never in it: another site file, another environment,
a table and a proxy of the test's own.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import paramiko
import pytest
import yaml

from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.diagnostics.access_probes import PROBE_JOB
from slurm_worker.protocol import keys
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.paths import conditional_put_key
from slurm_worker.protocol.ports import Row
from tests.e2e.conftest import Slurmctl, write_yaml
from tests.engines.poorer import Lack, poorer
from tests.stack.settings import ROOT, Mode
from tests.stack.stack import remembered_settings
from tests.stack.state_folder import state_folder
from tests.unit.slurm.ssh_server import closed_port

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

OLD_PYTHON = """#!/bin/sh
case "$*" in *version_info*) echo slurmctl-doctor-python 3.8.10 ;; esac
"""


@pytest.fixture(scope="module", autouse=True)
def _real_slurm(stack: object) -> None:
    settings = remembered_settings(state_folder(ROOT))
    if settings is None or settings.mode is not Mode.SLURM:
        pytest.skip("the embedded cluster has no login node, no partitions and no accounting")


@dataclass
class Setup:
    """A site, a job and an environment, to be broken.

    Args:
        folder: the test's own, for this process alone.
        shared: another, which the cluster's user may read.
        closing: is closed when the test ends.
    """

    site: dict[str, Any]
    environment: dict[str, str]
    folder: Path
    shared: Path
    closing: contextlib.ExitStack
    slurm: dict[str, Any] = field(default_factory=dict)

    @property
    def cluster(self) -> dict[str, Any]:
        return self.site["cluster"]  # type: ignore[no-any-return]  # a mapping, as the file has it

    @property
    def dynamodb(self) -> str:
        return str(self.site["aws"]["dynamodb_endpoint_url"])

    def examine(self, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
        """Run the command; its exit code, and its findings by check."""
        (self.folder / "items.jsonl").write_text('{"id": "a"}\n')
        (self.folder / "handler.py").write_text("def handle(item, context):\n    return item\n")
        config = {
            "job_id": "doctor-e2e",
            "input": {"path": "items.jsonl", "key": "id"},
            "handler": {"entry": "handler:handle", "code": "."},
            "slurm": self.slurm,
        }
        ended = Slurmctl(self.environment)(
            "doctor",
            *("--site", write_yaml(self.folder / "site.yaml", self.site)),
            *("--config", write_yaml(self.folder / "config.yaml", config)),
            *("--timeout", "180", *arguments),
            "--json",
        )
        assert "Traceback" not in ended.stderr, ended.stderr
        assert ended.stdout.count("\n") == 1, ended.stderr
        report = json.loads(ended.stdout)
        return ended.returncode, {each["check"]: each for each in report["checks"]}


@pytest.fixture
def setup(environment: Mapping[str, str], tmp_path: Path) -> Iterator[Setup]:
    site = yaml.safe_load(Path(environment["SLURMCTL_CONFIG"]).read_text())
    with contextlib.ExitStack() as closing:
        shared = Path(closing.enter_context(tempfile.TemporaryDirectory(prefix="doctor-e2e-")))
        shared.chmod(0o755)
        yield Setup(site, dict(environment), tmp_path, shared, closing)


def host_key_of_another(setup: Setup) -> None:
    key = paramiko.ECDSAKey.generate()
    line = f"[{setup.cluster['host']}]:{setup.cluster['port']} {key.get_name()} {key.get_base64()}"
    (setup.folder / "known_hosts").write_text(f"{line}\n")
    setup.cluster["known_hosts"] = str(setup.folder / "known_hosts")


def host_key_unknown(setup: Setup) -> None:
    (setup.folder / "known_hosts").write_text("")
    setup.cluster["known_hosts"] = str(setup.folder / "known_hosts")


def user_unknown(setup: Setup) -> None:
    setup.cluster["user"] = "nobody-here"


def key_missing(setup: Setup) -> None:
    setup.cluster["key_file"] = str(setup.folder / "absent")


def key_of_another(setup: Setup) -> None:
    paramiko.ECDSAKey.generate().write_private_key_file(str(setup.folder / "key"))
    setup.cluster["key_file"] = str(setup.folder / "key")


def port_closed(setup: Setup) -> None:
    setup.cluster["port"] = closed_port()


def without(setup: Setup, *absent: str) -> None:
    """This machine as login node, with all commands but these."""
    programs = setup.folder / "bin"
    programs.mkdir()
    for folder in ("/usr/bin", "/bin"):
        for program in Path(folder).iterdir():
            if program.name not in absent and not (programs / program.name).exists():
                (programs / program.name).symlink_to(program)
    # Found by its full path, but for what slurmctl runs.
    setup.environment["PATH"] = str(programs)
    setup.cluster.update(transport="local", remote_dir=str(setup.folder / "remote"))


def no_slurm(setup: Setup) -> None:
    without(setup, "sbatch")


def no_sacct(setup: Setup) -> None:
    without(setup, "sacct")


def folder_read_only(setup: Setup) -> None:
    setup.cluster["remote_dir"] = "/proc/airflow-slurm"


def folder_of_everybody(setup: Setup) -> None:
    folder = setup.shared / "lab"
    folder.mkdir()
    folder.chmod(0o1777)
    setup.cluster["remote_dir"] = str(folder)


def profile_missing(setup: Setup) -> None:
    setup.site["aws"]["profile"] = "absent"


def table_missing(setup: Setup) -> None:
    setup.site["storage"]["table"] = "absent-table"


def table_with(setup: Setup, hash_key: str, billing: Mapping[str, Any]) -> None:
    """Another table, which is there as long as the test runs."""
    client = boto3.client("dynamodb", endpoint_url=setup.dynamodb, region_name="us-east-1")
    name = f"doctor-e2e-{uuid.uuid4().hex[:8]}"
    client.create_table(
        TableName=name,
        AttributeDefinitions=[
            {"AttributeName": hash_key, "AttributeType": "S"},
            {"AttributeName": "sk", "AttributeType": "S"},
        ],
        KeySchema=[
            {"AttributeName": hash_key, "KeyType": "HASH"},
            {"AttributeName": "sk", "KeyType": "RANGE"},
        ],
        **billing,
    )
    setup.closing.callback(client.delete_table, TableName=name)
    setup.site["storage"]["table"] = name


def table_of_other_keys(setup: Setup) -> None:
    table_with(setup, "id", {"BillingMode": "PAY_PER_REQUEST"})


def table_away(setup: Setup) -> None:
    setup.site["aws"]["dynamodb_endpoint_url"] = f"http://127.0.0.1:{closed_port()}"


def bucket_missing(setup: Setup) -> None:
    setup.site["storage"]["prefix"] = "s3://absent-bucket/x"


def wrong_credentials(setup: Setup) -> None:
    setup.environment["AWS_SECRET_ACCESS_KEY"] = "another"


def partition_unknown(setup: Setup) -> None:
    setup.slurm["partition"] = "absent"


def python_missing(setup: Setup) -> None:
    setup.cluster["python"] = "python3.99"


def python_too_old(setup: Setup) -> None:
    program = setup.shared / "python3.8"
    program.write_text(OLD_PYTHON)
    program.chmod(0o755)
    setup.cluster["python"] = str(program)


def scratch_missing(setup: Setup) -> None:
    setup.slurm["setup"] = ["export SLURM_TMPDIR=/absent/scratch"]


def worker_missing(setup: Setup) -> None:
    setup.cluster["worker_command"] = "slurm-worker-absent"


def endpoint_away_from_the_node(setup: Setup) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    setup.slurm["setup"] = [f"export AWS_ENDPOINT_URL_DYNAMODB={url}"]


def wrong_credentials_on_the_node(setup: Setup) -> None:
    setup.slurm["setup"] = ["export AWS_ACCESS_KEY_ID=stack AWS_SECRET_ACCESS_KEY=another"]


#: What is broken: how, the check that names it, words of its mend.
WITHOUT_NODE: dict[str, tuple[Callable[[Setup], None], str, str]] = {
    "the host's key is another": (host_key_of_another, "ssh", "somebody may be listening in"),
    "the host's key is unknown": (host_key_unknown, "ssh", "ssh-keyscan -p"),
    "no such user": (user_unknown, "ssh", "check user and key_file"),
    "no key file": (key_missing, "ssh", "correct the path"),
    "the key is another": (key_of_another, "ssh", "check user and key_file"),
    "nothing listens at the port": (port_closed, "ssh", "check host, port and the network"),
    "no Slurm on the login node": (no_slurm, "slurm", "non-interactive shells"),
    "no sacct on the login node": (no_sacct, "accounting", "non-interactive shells"),
    "the remote folder can't be written": (
        folder_read_only,
        "remote_dir",
        "belongs to the account",
    ),
    "others can change the remote folder": (
        folder_of_everybody,
        "remote_dir",
        "a folder of this account",
    ),
    "no such profile": (profile_missing, "aws", "correct the site's aws section"),
    "no such table": (table_missing, "table", "create it with slurmctl bootstrap"),
    "the table has other keys": (table_of_other_keys, "table", "partition key pk"),
    "DynamoDB is away": (table_away, "table", "aws.dynamodb_endpoint_url"),
    "no such bucket": (bucket_missing, "bucket", "create it or correct the name"),
    "wrong credentials": (wrong_credentials, "bucket", "the credentials"),
}
ON_THE_NODE: dict[str, tuple[Callable[[Setup], None], str, str]] = {
    "no such partition": (partition_unknown, "node_job", "correct the slurm section"),
    "no Python on the node": (python_missing, "node_python", "cluster.python"),
    "Python on the node is too old": (python_too_old, "node_python", "Python >= 3.10"),
    "scratch is missing": (scratch_missing, "node_scratch", "export TMPDIR="),
    "no worker on the node": (worker_missing, "node_worker", "run it by hand"),
    "DynamoDB is away from the node": (
        endpoint_away_from_the_node,
        "node_table",
        "aws.dynamodb_endpoint_url",
    ),
    "wrong credentials on the node": (
        wrong_credentials_on_the_node,
        "node_bucket",
        "the policy that slurmctl doctor --iam prints",
    ),
}


def failed(findings: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What was found by each check that failed."""
    return {name: each["found"] for name, each in findings.items() if each["level"] == "fail"}


def left_behind(services: Services) -> list[str]:
    rows: list[Row] = list(services.rows.query(keys.job_pk(PROBE_JOB), consistent=True))
    objects = list(services.objects.list(services.paths(PROBE_JOB).root))
    return [*(str(row["sk"]) for row in rows), *objects]


def test_where_all_is_well_nothing_fails_and_nothing_stays(
    setup: Setup, services: Services
) -> None:
    code, findings = setup.examine()
    assert failed(findings) == {}
    assert code == 0
    passed = {name for name, each in findings.items() if each["level"] == "pass"}
    assert passed >= {
        *("aws", "job", "ssh", "slurm", "max_array_size", "accounting", "remote_dir", "clock"),
        *("table", "table_access", "bucket", "bucket_access", "conditional_put", "preemption"),
        *("node_job", "node_folder", "node_python", "node_scratch", "node_table", "node_bucket"),
        "node_clock",
    }
    # The stack's KillWait is short on purpose.
    assert findings["kill_wait"]["level"] == "warn"
    assert left_behind(services) == []
    folder = remembered_settings(state_folder(ROOT))
    assert folder is not None
    assert list((folder.home / ".airflow-slurm" / "jobs").glob(f"{PROBE_JOB}*")) == []


@pytest.mark.parametrize("fault", WITHOUT_NODE)
def test_a_fault_on_this_side_is_named_with_its_mend(setup: Setup, fault: str) -> None:
    break_it, check, mend = WITHOUT_NODE[fault]
    break_it(setup)
    code, findings = setup.examine("--no-node")
    assert findings[check]["level"] == "fail", findings
    assert mend in findings[check]["mend"], findings[check]
    assert code == 1
    assert "node_job" not in findings


@pytest.mark.parametrize("fault", ON_THE_NODE)
def test_a_fault_on_the_node_is_named_with_its_mend(setup: Setup, fault: str) -> None:
    break_it, check, mend = ON_THE_NODE[fault]
    break_it(setup)
    code, findings = setup.examine()
    assert findings[check]["level"] == "fail", findings
    assert mend in findings[check]["mend"], findings[check]
    assert code == 1
    # All is well on this side.
    assert [name for name in failed(findings) if not name.startswith("node_")] == []


def test_a_table_with_provisioned_capacity_is_warned_of(setup: Setup) -> None:
    capacity = {"ProvisionedThroughput": {"ReadCapacityUnits": 5, "WriteCapacityUnits": 5}}
    table_with(setup, "pk", capacity)
    code, findings = setup.examine("--no-node")
    assert (code, findings["table"]["level"]) == (0, "warn")
    assert "PAY_PER_REQUEST" in findings["table"]["mend"]


def test_a_store_without_conditional_put_gives_a_warning(setup: Setup) -> None:
    url = setup.closing.enter_context(poorer(setup.dynamodb, (Lack.HEED,)))
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
    client.create_bucket(Bucket="doctor-e2e")
    setup.closing.callback(client.delete_bucket, Bucket="doctor-e2e")
    # What tests the store for conditions stays in its bucket.
    setup.closing.callback(client.delete_object, Bucket="doctor-e2e", Key=conditional_put_key("x"))
    setup.site["aws"]["s3_endpoint_url"] = url
    setup.site["storage"]["prefix"] = "s3://doctor-e2e/x"
    code, findings = setup.examine("--no-node")
    assert (code, findings["conditional_put"]["level"]) == (0, "warn")
    assert "the table decides" in findings["conditional_put"]["found"]


def test_a_partition_without_a_free_node_is_said_and_no_fault(setup: Setup) -> None:
    setup.slurm["extra_args"] = ["--begin=now+1hour"]
    code, findings = setup.examine("--timeout", "3")
    assert (code, findings["node_job"]["level"]) == (0, "skip")
    assert findings["node_job"]["found"].startswith("not checked: no node was free within 3 s")
    assert "BeginTime" in findings["node_job"]["found"]


def test_the_policies_are_printed_for_people_and_machines(setup: Setup) -> None:
    site = write_yaml(setup.folder / "site.yaml", setup.site)
    slurmctl = Slurmctl(setup.environment)
    found = slurmctl.json("doctor", "--iam", "--site", site)
    assert {*found} == {"coordinator", "node"}
    text = slurmctl("doctor", "--iam", "--site", site).stdout
    assert "# coordinator" in text
    assert '"s3:PutObject"' in text


class TestRepair:
    @pytest.fixture
    def finished(
        self, slurmctl: Slurmctl, services: Services, tmp_path: Path
    ) -> tuple[JobId, dict[str, Any], dict[str, Any]]:
        """A job that is done and published: its id, status and manifest."""
        name = JobId(f"doctor-{uuid.uuid4().hex[:8]}")
        lines = [json.dumps({"id": f"k{n}", "n": n}) for n in range(60)]
        (tmp_path / "items.jsonl").write_text("\n".join(lines) + "\n")
        (tmp_path / "handler.py").write_text(
            "from slurm_worker import ItemError\n"
            "def handle(item, context):\n"
            "    if item['n'] % 20 == 7:\n"
            "        raise ItemError('bad_input', 'seven')\n"
            "    return {'n': item['n']}\n"
        )
        config = {
            "job_id": name,
            "input": {"path": "items.jsonl", "key": "id"},
            "bundle": 5,
            "handler": {"entry": "handler:handle", "code": "."},
            "slurm": {"time": "5"},
        }
        slurmctl.json("submit", write_yaml(tmp_path / "config.yaml", config), "--wait")
        slurmctl.json("retry", name, "--errors", "bad_input", "--wait")
        manifest = slurmctl.json("aggregate", name)
        return name, slurmctl.json("status", name), manifest

    def test_lost_rows_come_back_and_the_dataset_is_the_same(
        self,
        slurmctl: Slurmctl,
        services: Services,
        finished: tuple[JobId, dict[str, Any], dict[str, Any]],
    ) -> None:
        name, status, manifest = finished
        lost = self._task_keys(services, name)[::3]
        for pk, sk in lost:
            services.rows.delete(pk, sk)
        planned = slurmctl.json("doctor", "--repair", "--job", name, "--dry-run")
        assert (planned["tasks"], planned["completed"]) == (len(lost), len(lost))
        assert slurmctl.json("doctor", "--repair", "--job", name)["tasks"] == len(lost)
        assert self._facts(slurmctl.json("status", name)) == self._facts(status)
        assert slurmctl.json("aggregate", name) == manifest
        assert slurmctl.json("doctor", "--repair", "--job", name)["tasks"] == 0

    def test_all_rows_lost_status_and_dataset_are_the_same(
        self,
        slurmctl: Slurmctl,
        services: Services,
        finished: tuple[JobId, dict[str, Any], dict[str, Any]],
    ) -> None:
        name, status, manifest = finished
        arrays = {each for row in services.jobs(name).submissions() for each in row.slurm_job_ids}
        created = services.jobs(name).get().created_ms
        for pk, sk in self._task_keys(services, name):
            services.rows.delete(pk, sk)
        for pk in (keys.job_pk(name), keys.event_pk(name)):
            for row in list(services.rows.query(pk)):
                services.rows.delete(pk, str(row["sk"]))
        services.rows.delete(keys.JOBS_PK, keys.register_sk(created, name))
        assert slurmctl("status", name).returncode == 2
        found = slurmctl.json("doctor", "--repair", "--job", name)
        assert (found["job"], found["rounds"]) == (True, [0, 1])
        assert found["tasks"] == found["completed"] == 13
        assert self._facts(slurmctl.json("status", name)) == self._facts(status)
        assert slurmctl.json("aggregate", name) == manifest
        jobs = services.jobs(name)
        assert {each for row in jobs.submissions() for each in row.slurm_job_ids} == arrays
        assert next(each.action for each in jobs.events()) == "repaired"

    def _task_keys(self, services: Services, name: JobId) -> list[tuple[str, str]]:
        shards = services.jobs(name).get().shards
        return [
            (pk, str(row["sk"]))
            for pk in (keys.task_pk(name, shard) for shard in range(shards))
            for row in services.rows.query(pk, consistent=True)
        ]

    def _facts(self, status: Mapping[str, Any]) -> dict[str, Any]:
        """What a status says of the items, not of when it was asked."""
        names = ("state", "rounds", "tasks", "items", "ok", "failed", "rows", "complete")
        return {name: status[name] for name in names}

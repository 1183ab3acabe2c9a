"""Each check reports what it found and how to fix it; if one raises, the others continue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import pytest

from airflow_slurm_provider.coordinator.maintenance.doctor import (
    Finding,
    Level,
    Report,
    diagnose,
    policies,
)
from airflow_slurm_provider.coordinator.maintenance.doctor.aws import (
    AwsProbes,
    TableDescription,
    describe_table,
)
from airflow_slurm_provider.coordinator.maintenance.doctor.node import (
    ProbeOutput,
    judge,
    probe_options,
)
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from airflow_slurm_provider.coordinator.spec.site import Site, parse_site
from airflow_slurm_provider.coordinator.submission.credentials import session_policy
from airflow_slurm_provider.slurm.array_state import Element
from airflow_slurm_provider.slurm.cluster_info import Folder, Partition
from airflow_slurm_provider.slurm.options import SlurmOptions
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.backends.dynamodb import dynamo_client
from slurm_worker.backends.s3 import S3Objects, s3_client
from slurm_worker.diagnostics.access_probes import PROBE_JOB
from slurm_worker.errors import HostUnreachable, ServiceError, UserError
from slurm_worker.protocol.keys import JobId
from slurm_worker.testing import MemoryObjects
from tests.unit.answers import Answer, Request, dynamo_refusal, s3_refusal, serving, session
from tests.unit.coordinator.fakes import SITE, FakeArray, FakeSlurm, services
from tests.unit.coordinator.submission.test_credentials import Sts

SETTINGS = {
    "MaxArraySize": "1001",
    "MaxJobCount": "10000",
    "KillWait": "30 sec",
    "PreemptMode": "OFF",
    "PreemptType": "preempt/none",
    "JobRequeue": "1",
}
MAIN = Partition("main", default=True, grace_s=0, preempt_mode="OFF")
GOOD_TABLE = TableDescription("ACTIVE", {"pk": ("HASH", "S"), "sk": ("RANGE", "S")}, on_demand=True)
NODE = {
    "worker": "0.1.0",
    "python": "3.11.2",
    "host": "n1",
    "scratch": "/tmp",
    "scratch_filesystem": "ext4",
    "scratch_free_bytes": 50 << 30,
    "table": {"dynamodb:PutItem": "", "dynamodb:GetItem": ""},
    "bucket": {"s3:PutObject": ""},
    "clock_ahead_s": 0.2,
}


@dataclass
class FakeSurvey:
    """`slurm.survey.Survey` of a cluster that is as it says here."""

    config: dict[str, str] = field(default_factory=lambda: dict(SETTINGS))
    partition: Partition = MAIN
    keeps_accounting: bool = True
    error: Exception | None = None
    removed: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def settings(self) -> dict[str, str]:
        if self.error:
            raise self.error
        return self.config

    def partitions(self) -> list[Partition]:
        return [self.partition]

    def accounting(self) -> bool:
        return self.keeps_accounting

    def try_folder(self, unique: str) -> Folder:
        return Folder("/home/lab/.airflow-slurm", "nfs")

    def ignored_variables(self) -> list[str]:
        return self.ignored

    def remove(self, folder: str) -> None:
        self.removed.append(folder)


@dataclass
class Cluster(FakeSlurm):
    """Says at once what a node is like."""

    surveyed: FakeSurvey = field(default_factory=FakeSurvey)
    said: str = json.dumps(NODE)
    folders: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.state = FakeArray(alive=0)

    def survey(self) -> FakeSurvey:
        return self.surveyed

    def put_secret(self, folder: str, name: str, data: bytes) -> str:
        self.folders.add(folder)
        return super().put_secret(folder, name, data)

    def submit(self, name: str, script: str, folder: str) -> str:
        self.folders.add(folder)
        return super().submit(name, script, folder)

    def output(self, name: str, folder: str, element: int, lines: int) -> str:
        return self.said


@dataclass
class Pending(FakeArray):
    @property
    def elements(self) -> dict[int, Element]:
        return {0: Element(ElementState.PENDING, reason="Resources")}

    def counts(self) -> dict[str, int]:
        return {"PENDING": 1}


def probes(table: TableDescription = GOOD_TABLE, ahead_s: float = 0.0) -> AwsProbes:
    return AwsProbes(table=lambda: table, ahead_s=lambda: ahead_s)


def examine(
    cluster: Cluster | None = None, edges: Services | None = None, **options: Any
) -> dict[str, Finding]:
    opened = edges or services(cluster or Cluster())
    report = diagnose(
        opened.site,
        open_services=lambda _: opened,
        **{"probes": probes(), **options},
    )
    return {each.check: each for each in report.findings}


def named(findings: dict[str, Finding], level: Level) -> set[str]:
    return {name for name, each in findings.items() if each.level is level}


def raises(error: Exception) -> Any:
    def function(*_: object) -> Any:
        raise error

    return function


def test_on_a_good_site_every_check_passes_and_the_probe_leaves_nothing() -> None:
    cluster = Cluster()
    findings = examine(cluster)
    assert named(findings, Level.PASS) == set(findings)
    assert len(findings) == 24
    assert cluster.surveyed.removed == list(cluster.arrays)
    (script,) = cluster.scripts
    assert f"--job-name={PROBE_JOB}." in script
    assert "check --table t --objects s3://lab/lab" in script


def test_the_probes_credentials_lie_in_the_folder_that_is_removed() -> None:
    cluster = Cluster()
    role = "arn:aws:iam::123456789012:role/nodes"
    edges = replace(services(cluster), site=site_with(node_role_arn=role), sts=Sts)
    assert examine(edges=edges)["node_job"].level is Level.PASS
    (name,) = cluster.arrays
    (script,) = cluster.scripts
    assert f"AWS_CONFIG_FILE=/home/lab/.airflow-slurm/jobs/{name}/aws-config" in script
    assert set(cluster.secrets) == {"credentials.json", "aws-config"}
    assert cluster.folders == {name}
    assert cluster.surveyed.removed == [name]


def test_a_check_is_skipped_if_one_that_it_needs_has_failed() -> None:
    cluster = Cluster(
        surveyed=FakeSurvey(error=HostUnreachable("it is off; no answer", "switch it on"))
    )
    findings = examine(cluster)
    assert findings["ssh"] == Finding("ssh", Level.FAIL, "it is off; no answer", "switch it on")
    assert findings["node_job"].found == "not checked: slurm has not passed"
    assert named(findings, Level.SKIP) == {
        *("slurm", "limits", "variables", "accounting", "remote_dir", "node_job")
    }
    assert findings["bucket"].level is Level.PASS


def test_a_check_that_raises_any_error_has_failed_and_the_others_continue() -> None:
    broken = replace(probes(), table=raises(RuntimeError("the plot thickens")))
    findings = examine(probes=broken)
    assert findings["table"].level is Level.FAIL
    assert findings["table"].found == "RuntimeError: the plot thickens"
    assert findings["table"].fix
    assert findings["table_access"].level is Level.SKIP
    assert findings["conditional_put"].level is Level.PASS


def test_the_cluster_is_checked_even_if_services_cannot_be_opened() -> None:
    site = parse_site(
        {**SITE, "cluster": {"transport": "ssh", "host": "127.0.0.1", "port": 1}}, "s"
    )
    report = diagnose(site, open_services=raises(UserError("aws: no profile", "name one")))
    found = {each.check: each.level for each in report.findings}
    assert (found["aws"], found["ssh"]) == (Level.FAIL, Level.FAIL)
    assert not report.ok


def test_the_probe_runs_where_the_named_job_would_run() -> None:
    spec = JobSpec.model_validate(
        {
            "job_id": "j",
            "input": {"path": "x.csv", "key": "id"},
            "handler": {"entry": "m:f"},
            "workers": 3000,
            "slurm": {"partition": "long", "time": "08:00:00", "setup": ["module load py"]},
        }
    )
    cluster = Cluster()
    findings = examine(cluster, job=lambda _: spec)
    assert findings["job"].found == "j: 3,000 workers in long"
    assert findings["max_array_size"].found.endswith("3,000 workers become 3 arrays")
    (script,) = cluster.scripts
    assert "--partition=long" in script
    assert "module load py" in script
    assert "--time=5\n" in script


def test_an_unknown_job_is_named_and_the_other_checks_continue() -> None:
    findings = examine(job=lambda edges: edges.jobs(JobId("absent")).get())
    assert findings["job"].level is Level.FAIL
    assert "'absent'" in findings["job"].found
    assert findings["node_job"].level is Level.PASS


def test_without_a_probe_no_job_is_submitted() -> None:
    cluster = Cluster()
    assert "node_job" not in examine(cluster, probe=False)
    assert cluster.scripts == []


def test_without_a_free_node_the_check_is_skipped_and_the_job_is_cancelled() -> None:
    cluster = Cluster()
    cluster.state = Pending()
    findings = examine(cluster, timeout_s=30)
    assert findings["node_job"].level is Level.SKIP
    assert "not checked: no node was free within 30 s (Slurm's reason: Resources)" in (
        findings["node_job"].found
    )
    assert cluster.cancelled == list(cluster.arrays.values())
    assert cluster.surveyed.removed == list(cluster.arrays)


def test_a_probe_that_does_not_end_is_a_failure() -> None:
    cluster = Cluster()
    cluster.state = FakeArray(alive=1)
    finding = examine(cluster, timeout_s=30)["node_job"]
    assert (finding.level, finding.found) == (
        Level.FAIL,
        "a job has not ended within 30 s (RUNNING)",
    )


def test_a_probe_that_slurm_refuses_is_reported() -> None:
    cluster = Cluster(
        refuse=UserError("slurm: sbatch refused the array: a; b", "correct the slurm section")
    )
    finding = examine(cluster)["node_job"]
    assert finding.found == "slurm: sbatch refused the array: a; b"
    assert finding.fix == "correct the slurm section"


@pytest.mark.parametrize(
    ("changes", "check", "level", "fix"),
    [
        ({"MaxArraySize": "1"}, "max_array_size", Level.FAIL, "raise MaxArraySize"),
        ({"MaxJobCount": "500"}, "max_job_count", Level.WARN, "workers well below"),
        ({"KillWait": "5 sec"}, "kill_wait", Level.WARN, "KillWait=30"),
        (
            {"PreemptMode": "REQUEUE", "PreemptType": "preempt/qos"},
            "preemption",
            Level.WARN,
            "GraceTime=30",
        ),
        (
            {"PreemptMode": "GANG,SUSPEND", "PreemptType": "preempt/partition_prio"},
            "preemption",
            Level.WARN,
            "not suspended",
        ),
        (
            {"PreemptMode": "CANCEL", "PreemptType": "preempt/qos"},
            "preemption",
            Level.WARN,
            "slurmctl wait",
        ),
        ({"JobRequeue": "0"}, "requeue", Level.PASS, ""),
        ({"KillWait": ""}, "kill_wait", Level.SKIP, ""),
    ],
)
def test_harmful_settings_of_slurm_are_named(
    changes: dict[str, str], check: str, level: Level, fix: str
) -> None:
    cluster = Cluster(surveyed=FakeSurvey({**SETTINGS, **changes}))
    finding = examine(cluster)[check]
    assert finding.level is level
    assert fix in finding.fix


def test_a_grace_time_that_is_long_enough_passes() -> None:
    survey = FakeSurvey({**SETTINGS, "PreemptMode": "REQUEUE", "PreemptType": "preempt/qos"})
    survey.partition = Partition("main", default=True, grace_s=60, preempt_mode="REQUEUE")
    assert examine(Cluster(surveyed=survey))["preemption"].level is Level.PASS


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("slurm 20.02.7", Level.FAIL),
        ("slurm 20.11.0", Level.PASS),
        ("slurm-wlm 22.05.8", Level.PASS),
        ("slurm 25.11.1", Level.PASS),
        ("slurm 26.05.0", Level.WARN),
        ("slurm-embedded 0.1.0", Level.PASS),
    ],
)
def test_untested_versions_of_slurm_are_reported(
    version: str, level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "version", lambda _: version)
    assert examine()["slurm"].level is level


def test_a_site_without_accounting_gives_a_warning() -> None:
    assert examine(Cluster(surveyed=FakeSurvey(keeps_accounting=False)))["accounting"].level is (
        Level.WARN
    )


def test_a_table_whose_replies_have_no_date_gives_a_warning_on_each_side() -> None:
    cluster = Cluster(said=json.dumps({**NODE, "clock_ahead_s": None}))
    found = examine(cluster, probes=replace(probes(), ahead_s=lambda: None))
    for check in ("clock", "node_clock"):
        assert found[check].level is Level.WARN
        assert "NTP" in found[check].fix


@pytest.mark.parametrize(
    ("ahead_s", "level"),
    [(0.9, Level.PASS), (-30.0, Level.WARN), (300.0, Level.FAIL), (-300.0, Level.FAIL)],
)
def test_a_clock_that_is_off_is_named(ahead_s: float, level: Level) -> None:
    finding = examine(probes=probes(ahead_s=ahead_s))["clock"]
    assert finding.level is level
    if level is Level.FAIL:
        assert "300.0 s" in finding.found
        assert "NTP" in finding.fix


@pytest.mark.parametrize(
    ("table", "level", "fix"),
    [
        (replace(GOOD_TABLE, keys={"id": ("HASH", "S")}), Level.FAIL, "partition key pk"),
        (
            replace(GOOD_TABLE, keys={"pk": ("HASH", "S"), "sk": ("RANGE", "N")}),
            Level.FAIL,
            "both strings",
        ),
        (replace(GOOD_TABLE, status="CREATING"), Level.FAIL, "until it is ACTIVE"),
        (replace(GOOD_TABLE, on_demand=False), Level.WARN, "PAY_PER_REQUEST"),
    ],
)
def test_a_wrong_table_is_named(table: TableDescription, level: Level, fix: str) -> None:
    finding = examine(probes=probes(table))["table"]
    assert finding.level is level
    assert fix in finding.fix


class NoDeletes(MemoryObjects):
    def delete(self, key: str) -> None:
        raise ServiceError(
            "An error occurred (AccessDenied) when calling the DeleteObject operation"
        )


class Overwrites(MemoryObjects):
    def put_new(self, key: str, body: bytes) -> bool:
        self.put(key, body)
        return True


def test_an_action_that_is_not_allowed_is_named() -> None:
    edges = replace(services(Cluster()), objects=NoDeletes())
    finding = examine(edges=edges)["bucket_access"]
    assert finding.level is Level.FAIL
    assert finding.found.startswith("s3:DeleteObject failed: An error occurred (AccessDenied)")
    assert "--iam" in finding.fix


class Keeps:
    """A store in the form of answers; objects by path."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def __call__(self, request: Request) -> Answer:
        path = request.path.partition("?")[0]
        if request.method == "PUT":
            self.objects[path] = request.body
        elif request.method == "DELETE":
            self.objects.pop(path, None)
        elif "list-type" in request.path:
            return Answer(body=b"<ListBucketResult></ListBucketResult>")
        elif request.method == "GET":
            return Answer(body=self.objects[path])
        return Answer(headers={"ETag": '"1"'})


class NoChecksums(Keeps):
    """Refuses the SDK's checksums in words of its own."""

    def __call__(self, request: Request) -> Answer:
        if "x-amz-checksum-crc32" in request.headers:
            return s3_refusal(403, "SignatureDoesNotMatch", "Access denied.")
        return super().__call__(request)


class KeepsTrailers(Keeps):
    """Keeps the frame around the bytes, in which the SDK sends checksums over https."""

    def __call__(self, request: Request) -> Answer:
        answer = super().__call__(request)
        if "x-amz-checksum-crc32" in request.headers:
            (path,) = self.objects
            self.objects[path] = b"5\r\n" + request.body + b"\r\n0\r\nx-amz-checksum-crc32:x\r\n"
        return answer


@pytest.mark.parametrize("store", [NoChecksums, KeepsTrailers])
def test_a_store_that_does_not_know_the_sdks_checksums_is_named_with_the_setting(
    store: type[Keeps],
) -> None:
    kept = store()
    with serving(kept) as server:
        edges = services(Cluster())
        opened = {
            name: S3Objects(s3_client(session(), server.url, name), edges.site.bucket)
            for name in ("when_supported", "when_required")
        }
        finding = examine(
            edges=replace(edges, objects=opened["when_supported"]),
            probes=replace(probes(), plain=lambda: opened["when_required"]),
        )["bucket_access"]
    assert finding.level is Level.FAIL
    assert "set aws.checksums: when_required in the site file" in finding.fix
    assert kept.objects == {}


def test_checksums_are_not_blamed_for_what_fails_without_them_too() -> None:
    edges = replace(services(Cluster()), objects=NoDeletes())
    finding = examine(edges=edges, probes=replace(probes(), plain=NoDeletes))["bucket_access"]
    assert "checksums" not in finding.fix


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (dynamo_refusal(400, "ExpiredTokenException"), ("credentials have expired", "renew them")),
        (
            dynamo_refusal(400, "InvalidSignatureException", "Signature expired: 1 is earlier"),
            ("the clock of", "NTP"),
        ),
    ],
)
def test_expired_credentials_and_a_wrong_clock_are_named_with_what_to_do(
    answer: Answer, words: tuple[str, str]
) -> None:
    def describe() -> TableDescription:
        with serving(lambda _: answer) as server:
            return describe_table(dynamo_client(session(), server.url), "t")

    finding = examine(probes=replace(probes(), table=describe))["table"]
    assert finding.level is Level.FAIL
    assert words[0] in finding.found
    assert words[1] in finding.fix
    assert "--iam" not in finding.fix


def test_a_store_that_ignores_if_match_gives_a_warning() -> None:
    class Replaces(MemoryObjects):
        def put_if(self, key: str, body: bytes, tag: str) -> bool:
            self.put(key, body)
            return True

    edges = replace(services(Cluster()), objects=Replaces())
    found = examine(edges=edges)["conditional_put"]
    assert (found.level, "gc deletes no files" in found.found) == (Level.WARN, True)


def test_a_store_without_conditional_put_gives_a_warning() -> None:
    edges = replace(services(Cluster()), objects=Overwrites())
    assert examine(edges=edges)["conditional_put"].level is Level.WARN


def output(**changes: Any) -> ProbeOutput:
    return ProbeOutput(f"module loaded\n{json.dumps({**NODE, **changes})}\n", "COMPLETED")


@pytest.mark.parametrize(
    ("said", "check", "fix"),
    [
        (ProbeOutput("", "COMPLETED"), "node_folder", "share"),
        (
            ProbeOutput("bash: python3.99: command not found\n", "FAILED"),
            "node_python",
            "Python >= 3.10",
        ),
        (ProbeOutput("slurmctl-doctor-python 3.9.2\n", "FAILED"), "node_python", "Python >= 3.10"),
        (
            ProbeOutput("slurmctl-doctor-python 3.11.2\nKilled\n", "FAILED"),
            "node_worker",
            "by hand",
        ),
        (
            ProbeOutput("slurmctl-doctor-python 3.11.2\n{broken\n", "FAILED"),
            "node_worker",
            "by hand",
        ),
        (output(scratch_error="No such file"), "node_scratch", "TMPDIR"),
        (output(scratch_filesystem="lustre"), "node_scratch", "own disk"),
        (output(scratch_filesystem="fuse.sshfs"), "node_scratch", "own disk"),
        (
            output(
                table={"dynamodb:PutItem": "away; lost"},
                fixes={"dynamodb:PutItem": "check the network"},
            ),
            "node_table",
            "check the network",
        ),
        (output(bucket={"s3:PutObject": "AccessDenied"}), "node_bucket", "--iam"),
        (output(clock_ahead_s=-900.0), "node_clock", "NTP"),
    ],
)
def test_a_problem_on_a_node_is_named(said: ProbeOutput, check: str, fix: str) -> None:
    findings = {each.check: each for each in judge(said, "python3", None)}
    assert named(findings, Level.FAIL) == {check}
    assert fix in findings[check].fix


def test_a_nodes_error_about_the_time_has_its_own_fix() -> None:
    document = {name: value for name, value in NODE.items() if name != "clock_ahead_s"}
    document |= {"clock_error": "no answer; 3 tries", "fixes": {"clock": "check the endpoint"}}
    findings = judge(ProbeOutput(json.dumps(document), "COMPLETED"), "python3", None)
    assert findings[-1] == Finding(
        "node_clock", Level.FAIL, "no answer; 3 tries", "check the endpoint"
    )


def test_the_error_of_an_action_keeps_its_own_fix() -> None:
    class Away(MemoryObjects):
        def put(self, key: str, body: bytes) -> None:
            raise ServiceError("away; lost", "check the network")

    finding = examine(edges=replace(services(Cluster()), objects=Away()))["bucket_access"]
    assert finding.found == "s3:PutObject failed: away; lost"
    assert finding.fix == "check the network"


def test_scratch_that_is_nearly_full_gives_a_warning() -> None:
    findings = {each.check: each for each in judge(output(scratch_free_bytes=1), "python3", None)}
    assert findings["node_scratch"].level is Level.WARN


def test_a_worker_of_the_sites_own_that_does_not_start_is_named() -> None:
    said = ProbeOutput("bash: slurm-worker: command not found\n", "FAILED")
    findings = {each.check: each for each in judge(said, "python3", "slurm-worker")}
    assert named(findings, Level.FAIL) == {"node_worker"}
    assert "command not found" in findings["node_worker"].found


def test_a_report_counts_its_findings() -> None:
    report = Report((Finding("a", Level.PASS, "good"), Finding("b", Level.WARN, "so so", "mend")))
    assert report.to_dict() == {
        "ok": True,
        "counts": {"pass": 1, "warn": 1, "fail": 0, "skip": 0},
        "checks": [
            {"check": "a", "level": "pass", "found": "good", "mend": ""},
            {"check": "b", "level": "warn", "found": "so so", "mend": "mend"},
        ],
    }


# --- IAM ----------------------------------------------------------------------


def site_with(prefix: str = "s3://lab/lab", **aws: Any) -> Site:
    return parse_site({**SITE, "storage": {"table": "t", "prefix": prefix}, "aws": aws}, "site")


def grants(policy: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(action, resource) pairs of a policy."""
    for statement in policy["Statement"]:
        actions, resources = statement["Action"], statement["Resource"]
        for action in [actions] if isinstance(actions, str) else actions:
            for resource in [resources] if isinstance(resources, str) else resources:
                yield action, resource


@pytest.mark.parametrize("job", ["job-1", "job-1.merge-0123abcd"])
def test_the_nodes_policy_allows_what_every_jobs_session_does(job: str) -> None:
    site = site_with(node_read=["s3://reference/genomes"])
    node = policies(site)["node"]
    allowed = list(grants(node))
    for action, resource in grants(session_policy(site, JobId(job))):
        assert any(
            action == each and fnmatchcase(resource, pattern) for each, pattern in allowed
        ), (action, resource)
    patterns = node["Statement"][3]["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"]
    session = session_policy(site, JobId(job))["Statement"][3]["Condition"]
    for key in session["ForAllValues:StringLike"]["dynamodb:LeadingKeys"]:
        assert any(fnmatchcase(key, pattern) for pattern in patterns)


def test_the_nodes_may_not_list_the_whole_bucket() -> None:
    node = policies(site_with())["node"]
    assert all(resource != "arn:aws:s3:::lab/*" for _, resource in grants(node))
    assert all("*" not in action for action, _ in grants(node))


def test_the_coordinators_policy_is_of_this_table_and_prefix_alone() -> None:
    found = set(grants(policies(site_with(region="eu-west-1"))["coordinator"]))
    table = "arn:aws:dynamodb:eu-west-1:*:table/t"
    assert {resource for _, resource in found} == {
        "arn:aws:s3:::lab/lab/*",
        "arn:aws:s3:::lab",
        table,
    }
    assert ("dynamodb:DescribeTable", table) in found
    assert not any(action.startswith("sts:") for action, _ in found)


@pytest.mark.parametrize(
    ("aws", "partition"),
    [
        ({"region": "us-gov-west-1"}, "aws-us-gov"),
        ({"region": "cn-north-1"}, "aws-cn"),
        ({"region": "eu-west-1"}, "aws"),
        ({"region": "nowhere"}, "aws"),
        ({}, "aws"),
        ({"node_role_arn": "arn:aws-us-gov:iam::123456789012:role/nodes"}, "aws-us-gov"),
        ({"node_role_arn": "no-arn", "region": "cn-north-1"}, "aws-cn"),
    ],
)
def test_every_policy_names_resources_of_the_sites_part_of_aws(
    aws: dict[str, Any], partition: str
) -> None:
    site = site_with(node_read=["s3://reference/genomes"], **aws)
    both = [*policies(site).values(), session_policy(site, JobId("job-1"))]
    resources = [
        resource for each in both for action, resource in grants(each) if action[:4] != "sts:"
    ]
    assert {each.split(":")[1] for each in resources} == {partition}


def test_a_role_for_nodes_may_be_assumed_by_the_coordinator() -> None:
    role = "arn:aws:iam::123456789012:role/nodes"
    coordinator = policies(site_with(node_role_arn=role))["coordinator"]
    assert ("sts:AssumeRole", role) in set(grants(coordinator))


def test_the_coordinator_may_send_alerts_if_the_site_has_a_topic() -> None:
    topic = "arn:aws:sns:eu-west-1:123456789012:alerts"
    found = policies(parse_site({**SITE, "alerts": {"sns_topic_arn": topic}}, "site"))
    assert ("sns:Publish", topic) in set(grants(found["coordinator"]))
    assert not any(action.startswith("sns:") for action, _ in grants(found["node"]))
    assert not any(
        action.startswith("sns:") for action, _ in grants(policies(site_with())["coordinator"])
    )


def test_without_a_prefix_the_policy_covers_the_whole_bucket() -> None:
    found = policies(site_with("s3://lab"))
    assert ("s3:PutObject", "arn:aws:s3:::lab/*") in set(grants(found["coordinator"]))
    assert ("s3:PutObject", "arn:aws:s3:::lab/jobs/*/*") in set(grants(found["node"]))


def test_the_probe_keeps_the_options_that_decide_where_workers_run() -> None:
    options = probe_options(
        SlurmOptions(partition="p", time="10:00:00", throttle=3, begin="now+60")
    )
    assert (options.partition, options.time) == ("p", "5")
    assert (options.throttle, options.begin) == (None, None)


def test_options_in_variables_of_the_account_are_reported_as_ignored() -> None:
    cluster = Cluster(surveyed=FakeSurvey(ignored=["SBATCH_ACCOUNT", "SQUEUE_FORMAT"]))
    found = examine(cluster)["variables"]
    assert found.level is Level.WARN
    assert "sets SBATCH_ACCOUNT, SQUEUE_FORMAT, which are ignored here" in found.found
    assert "slurm.account" in found.fix


class LostReply(Cluster):
    """The reply to the probe's submission does not come."""

    def submit(self, name: str, script: str, folder: str) -> str:
        super().submit(name, script, folder)
        self.state = FakeArray(alive=1)
        raise ServiceError("connection lost")


def test_a_probe_whose_reply_was_lost_is_cancelled_too() -> None:
    cluster = LostReply()
    examine(cluster)
    assert cluster.cancelled == list(cluster.arrays.values())

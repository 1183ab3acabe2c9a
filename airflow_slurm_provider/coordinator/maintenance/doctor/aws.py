"""The table, the bucket and the clock, as this machine sees them; and what IAM must allow.

Requests: one DescribeTable, a HEAD of the bucket, five to each to try what is allowed, three
for the conditional PUT, one for the time. What fails in the bucket is tried twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from botocore.exceptions import ClientError

from airflow_slurm_provider.coordinator.maintenance.aws_resources import BILLING_MODE, TABLE_KEYS
from airflow_slurm_provider.coordinator.maintenance.doctor.report import Finding, Level
from airflow_slurm_provider.coordinator.services import Services, open_session
from airflow_slurm_provider.coordinator.spec.site import Site
from airflow_slurm_provider.coordinator.submission.credentials import (
    OBJECT_ACTIONS,
    TABLE_ACTIONS,
    partition_of,
    session_policy,
)
from slurm_worker.backends.checksums import CHECKSUMS_FIX
from slurm_worker.backends.dynamodb import dynamo_client
from slurm_worker.backends.errors import UNANSWERED, refused, unanswered
from slurm_worker.backends.s3 import S3Objects, s3_client
from slurm_worker.diagnostics.access_probes import (
    PROBE_JOB,
    AccessProbe,
    clock_ahead,
    probe_bucket,
    probe_table,
)
from slurm_worker.errors import UserError
from slurm_worker.protocol.job_store import probe_replacing
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.ports import ObjectStore

#: Beyond this AWS refuses signed requests before long (it allows five minutes).
MOST_AHEAD_S = 60.0
#: Beyond this, clocks can't be compared in logs.
WORTH_SAYING_S = 2.0
_POLICY = "slurmctl doctor --iam prints the policy"


@dataclass(frozen=True, slots=True)
class TableDescription:
    """A table as DynamoDB describes it; `keys` as `aws_resources.TABLE_KEYS`."""

    status: str
    keys: dict[str, tuple[str, str]]
    on_demand: bool

    @property
    def keys_text(self) -> str:
        """The keys as a person reads them."""
        return ", ".join(f"{key} ({kind}, {type_})" for key, (kind, type_) in self.keys.items())


@dataclass(frozen=True, slots=True)
class AwsProbes:
    """Requests that `Services` has no method for."""

    table: Callable[[], TableDescription]  #: describes the site's table
    #: Seconds that this machine's clock is ahead of DynamoDB's; None if that gives no time
    ahead_s: Callable[[], float | None]
    #: Opens the bucket without the checksums that S3 does not require; None if nothing does
    plain: Callable[[], ObjectStore] | None = None

    @classmethod
    def of(cls, site: Site) -> AwsProbes:
        """Those of a site; requests are made when they are called."""

        def client() -> Any:
            return dynamo_client(open_session(site), site.aws.dynamodb_endpoint_url)

        def plain() -> ObjectStore:
            s3 = s3_client(open_session(site), site.aws.s3_endpoint_url, "when_required")
            return S3Objects(s3, site.bucket)

        return cls(
            table=lambda: describe_table(client(), site.storage.table),
            ahead_s=lambda: clock_ahead(client().meta.endpoint_url),
            plain=None if site.aws.checksums == "when_required" else plain,
        )


def describe_table(client: Any, name: str) -> TableDescription:
    """Describe a table.

    Raises:
        UserError: if there is no such table.
        ServiceError: if DynamoDB can't be reached, or refuses.
    """
    what = f"DynamoDB table {name!r}"
    try:
        return table_description(client.describe_table(TableName=name)["Table"])
    except ClientError as error:
        if error.response["Error"]["Code"] == "ResourceNotFoundException":
            raise UserError(
                f"storage.table: there is no {what}",
                "create it with slurmctl bootstrap, or correct the name",
            ) from error
        raise refused(what, error, "aws.dynamodb_endpoint_url", _POLICY) from error
    except UNANSWERED as error:
        check = "aws.dynamodb_endpoint_url, the region and the network"
        raise unanswered(what, error, check) from error


def table_description(found: Mapping[str, Any]) -> TableDescription:
    """Read DynamoDB's description of a table."""
    types = {
        attribute["AttributeName"]: attribute["AttributeType"]
        for attribute in found["AttributeDefinitions"]
    }
    return TableDescription(
        status=found["TableStatus"],
        keys={
            key["AttributeName"]: (key["KeyType"], types[key["AttributeName"]])
            for key in found["KeySchema"]
        },
        on_demand=found.get("BillingModeSummary", {}).get("BillingMode") == BILLING_MODE,
    )


def judge_clock(check: str, whose: str, ahead_s: float | None) -> Finding:
    """A clock that is so many seconds ahead of AWS's, or behind it where negative.

    None if the table's service gives no time: workers use the clocks of their nodes then.
    """
    if ahead_s is None:
        found = f"the table's replies have no date to compare the clock of {whose} with"
        return Finding(check, Level.WARN, found, "set it by NTP: leases depend on it here")
    if not ahead_s:
        return Finding(check, Level.PASS, f"the clock of {whose} agrees with AWS's")
    way = "ahead of" if ahead_s >= 0 else "behind"
    found = f"the clock of {whose} is {abs(ahead_s):.1f} s {way} AWS's"
    if abs(ahead_s) > MOST_AHEAD_S:
        fix = "set it by NTP: AWS refuses requests when the clock is off by 5 min"
        return Finding(check, Level.FAIL, found, fix)
    if abs(ahead_s) > WORTH_SAYING_S:
        return Finding(check, Level.WARN, found, "set it by NTP")
    return Finding(check, Level.PASS, found)


def check_table(probes: AwsProbes, name: str) -> Iterator[Finding]:
    """The table is there, with the right keys, billed on demand."""
    table = probes.table()
    if table.keys != TABLE_KEYS:
        fix = (
            "create another table with partition key pk and sort key sk, both strings, and name "
            "it in storage.table"
        )
        yield Finding("table", Level.FAIL, f"table {name!r} has the keys {table.keys_text}", fix)
    elif table.status not in ("ACTIVE", "UPDATING"):
        fix = "wait until it is ACTIVE"
        yield Finding("table", Level.FAIL, f"table {name!r} is {table.status}", fix)
    elif not table.on_demand:
        found = f"table {name!r} has provisioned capacity, which throttles many workers at once"
        fix = "switch its billing mode to on demand (PAY_PER_REQUEST)"
        yield Finding("table", Level.WARN, found, fix)
    else:
        found = f"table {name!r} has string keys pk and sk and is billed on demand"
        yield Finding("table", Level.PASS, found)


def check_table_access(services: Services) -> Iterator[Finding]:
    """Each action that the coordinator needs on the table, on a row of its own."""
    probes = probe_table(services.rows, uuid.uuid4().hex)
    yield judge_probes("table_access", probes, _POLICY)


def check_bucket(services: Services) -> Iterator[Finding]:
    """The bucket is there and can be used."""
    services.objects.verify()
    yield Finding("bucket", Level.PASS, f"bucket {services.site.bucket!r} exists")


def check_bucket_access(services: Services, probes: AwsProbes) -> Iterator[Finding]:
    """Each action that the coordinator needs in the bucket, on an object of its own.

    What fails is tried again without the SDK's checksums, because stores that don't know them word
    their refusal as they like.
    """
    finding = _judge_bucket(services.objects, services.site.prefix)
    if finding.level is Level.PASS or probes.plain is None:
        yield finding
    elif _judge_bucket(probes.plain(), services.site.prefix).level is Level.PASS:
        fix = f"the store accepts it without the SDK's checksums: {CHECKSUMS_FIX}"
        yield replace(finding, fix=fix)
    else:
        yield finding


def _judge_bucket(objects: ObjectStore, prefix: str) -> Finding:
    return judge_probes("bucket_access", probe_bucket(objects, prefix, uuid.uuid4().hex), _POLICY)


def check_conditional_put(services: Services) -> Iterator[Finding]:
    """The store applies conditions: they decide between two markers, and two manifests."""
    paths = JobPaths(services.site.prefix, PROBE_JOB)
    fix = "if that matters, upgrade the store to one with conditional PUT"
    if not services.conditional_put():
        found = (
            "the store ignores If-None-Match: the table decides between two attempts, which takes "
            "one more write and one more PUT per task"
        )
    elif probe_replacing(services.objects, paths) is None:
        found = (
            "the store ignores If-Match: of two aggregations the later one wins, and slurmctl gc "
            "deletes no files of datasets"
        )
    else:
        found = "the store refuses to create an object twice"
        yield Finding("conditional_put", Level.PASS, found)
        return
    yield Finding("conditional_put", Level.WARN, found, fix)


def judge_probes(check: str, probes: Sequence[AccessProbe], fix: str) -> Finding:
    """Whether everything that was tried is allowed; the error is the first one's."""
    refused = [probe for probe in probes if probe.error]
    if not refused:
        names = ", ".join(probe.action.partition(":")[2] for probe in probes)
        return Finding(check, Level.PASS, f"allowed: {names}")
    actions = ", ".join(probe.action for probe in refused)
    return Finding(
        check, Level.FAIL, f"{actions} failed: {refused[0].error}", refused[0].fix or fix
    )


def policies(site: Site) -> dict[str, Any]:
    """The least that IAM must allow the coordinator and the nodes; the names are stable.

    The nodes' policy is that of a job's session for every job instead of one, so that a role with
    it can be narrowed to each job.
    """
    return {"coordinator": _coordinator_policy(site), "node": session_policy(site, JobId("*"))}


def _coordinator_policy(site: Site) -> dict[str, Any]:
    """What submitting, watching, retrying, publishing, `doctor` and `gc` need.

    Inputs that lie elsewhere need ``s3:GetObject`` on them beside this.
    """
    arn = f"arn:{partition_of(site)}"
    bucket = f"{arn}:s3:::{site.bucket}"
    below = f"{bucket}/{site.prefix}/*" if site.prefix else f"{bucket}/*"
    region = site.aws.region or "*"
    table = f"{arn}:dynamodb:{region}:*:table/{site.storage.table}"
    allowed: list[tuple[str | list[str], str | None]] = [
        # Large files are uploaded in parts, which are removed after an interruption.
        ([f"s3:{name}" for name in (*OBJECT_ACTIONS, "AbortMultipartUpload")], below),
        # HEAD of the bucket needs it too, and no prefix can limit that.
        ("s3:ListBucket", bucket),
        ([f"dynamodb:{name}" for name in (*TABLE_ACTIONS, "DescribeTable")], table),
        ("sts:AssumeRole", site.aws.node_role_arn),
        ("sns:Publish", site.alerts.sns_topic_arn),
    ]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": actions, "Resource": resource}
            for actions, resource in allowed
            if resource
        ],
    }

"""The table, the bucket and the clock, as this machine sees them with its credentials.

Requests: one DescribeTable, a HEAD of the bucket, five to each to try what is allowed, three
for the conditional PUT, one for the time.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from airflow_slurm_provider.coordinator.maintenance.aws_resources import BILLING_MODE, TABLE_KEYS
from airflow_slurm_provider.coordinator.maintenance.doctor.report import Finding, Level
from airflow_slurm_provider.coordinator.services import Services, open_session
from airflow_slurm_provider.coordinator.spec.site import Site
from slurm_worker.backends.dynamodb import dynamo_client
from slurm_worker.backends.errors import unanswered
from slurm_worker.diagnostics.access_probes import (
    PROBE_JOB,
    AccessProbe,
    clock_ahead,
    probe_bucket,
    probe_table,
)
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol.job_store import probe_replacing
from slurm_worker.protocol.paths import JobPaths

#: Beyond this AWS refuses signed requests before long (it allows five minutes).
MOST_AHEAD_S = 60.0
#: Beyond this, clocks can't be compared in logs.
WORTH_SAYING_S = 2.0
_POLICY = "slurmctl doctor --iam prints the policy"


@dataclass(frozen=True, slots=True)
class TableFacts:
    """A table as DynamoDB describes it.

    Args:
        status: ``ACTIVE`` where it can be used.
        keys: kind and type of each key attribute, by name: ``{"pk": ("HASH", "S")}``.
        on_demand: whether it is billed by request.
    """

    status: str
    keys: dict[str, tuple[str, str]]
    on_demand: bool

    @property
    def keys_text(self) -> str:
        """The keys as a person reads them."""
        return ", ".join(f"{key} ({kind}, {type_})" for key, (kind, type_) in self.keys.items())


@dataclass(frozen=True, slots=True)
class AwsFacts:
    """What the services don't tell by themselves.

    Args:
        table: describes the site's table.
        ahead_s: seconds that this machine's clock is ahead of DynamoDB's.
    """

    table: Callable[[], TableFacts]
    ahead_s: Callable[[], float]

    @classmethod
    def of(cls, site: Site) -> AwsFacts:
        """Those of a site; requests are made when asked."""

        def client() -> object:
            return dynamo_client(open_session(site), site.aws.dynamodb_endpoint_url)

        def endpoint() -> str:
            return str(client().meta.endpoint_url)  # type: ignore[attr-defined]  # a boto3 client

        return cls(
            table=lambda: describe_table(client(), site.storage.table),
            ahead_s=lambda: clock_ahead(endpoint()),
        )


def describe_table(client: object, name: str) -> TableFacts:
    """Ask DynamoDB.

    Raises:
        UserError: if there is no such table.
        ServiceError: if DynamoDB can't be reached, or refuses.
    """
    try:
        found = client.describe_table(TableName=name)["Table"]  # type: ignore[attr-defined]  # a boto3 client
    except ClientError as error:
        if error.response["Error"]["Code"] == "ResourceNotFoundException":
            raise UserError(
                f"storage.table: there is no DynamoDB table {name!r}; create it with "
                "slurmctl bootstrap, or correct the name"
            ) from error
        raise ServiceError(f"DynamoDB table {name!r}: {error}; {_POLICY}") from error
    except BotoCoreError as error:
        raise unanswered(
            f"DynamoDB table {name!r}",
            error,
            "aws.dynamodb_endpoint_url, the region and the network",
        ) from error
    return table_facts(found)


def table_facts(found: Mapping[str, Any]) -> TableFacts:
    """Read DynamoDB's description of a table."""
    types = {each["AttributeName"]: each["AttributeType"] for each in found["AttributeDefinitions"]}
    return TableFacts(
        status=found["TableStatus"],
        keys={
            each["AttributeName"]: (each["KeyType"], types[each["AttributeName"]])
            for each in found["KeySchema"]
        },
        on_demand=found.get("BillingModeSummary", {}).get("BillingMode") == BILLING_MODE,
    )


def check_clock(facts: AwsFacts) -> Iterator[Finding]:
    """This machine's clock agrees with AWS's."""
    yield judge_clock("clock", "this machine", facts.ahead_s())


def judge_clock(check: str, whose: str, ahead_s: float) -> Finding:
    """A clock that is so many seconds ahead of AWS's, or behind it where negative."""
    way = "ahead of" if ahead_s >= 0 else "behind"
    found = f"the clock of {whose} is {abs(ahead_s):.1f} s {way} AWS's"
    if not ahead_s:
        return Finding(check, Level.PASS, f"the clock of {whose} agrees with AWS's")
    if abs(ahead_s) > MOST_AHEAD_S:
        return Finding(
            check, Level.FAIL, found, "have it set by NTP: AWS refuses what is 5 min off"
        )
    if abs(ahead_s) > WORTH_SAYING_S:
        return Finding(check, Level.WARN, found, "have it set by NTP")
    return Finding(check, Level.PASS, found)


def check_table(facts: AwsFacts, name: str) -> Iterator[Finding]:
    """The table is there, with the right keys, billed on demand."""
    table = facts.table()
    if table.keys != TABLE_KEYS:
        yield Finding(
            "table",
            Level.FAIL,
            f"table {name!r} has the keys {table.keys_text}",
            "create another with partition key pk and sort key sk, both strings, and name it in "
            "storage.table",
        )
    elif table.status not in ("ACTIVE", "UPDATING"):
        mend = "wait until it is ACTIVE"
        yield Finding("table", Level.FAIL, f"table {name!r} is {table.status}", mend)
    elif not table.on_demand:
        yield Finding(
            "table",
            Level.WARN,
            f"table {name!r} has provisioned capacity, so that many workers at once are throttled",
            "switch its billing mode to on demand (PAY_PER_REQUEST)",
        )
    else:
        found = f"table {name!r} has string keys pk and sk and is billed on demand"
        yield Finding("table", Level.PASS, found)


def check_table_access(services: Services) -> Iterator[Finding]:
    """Each action that the coordinator needs on the table, on a row of its own."""
    probes = probe_table(services.rows, uuid.uuid4().hex)
    yield judge_probes("table_access", probes, _POLICY)


def check_bucket(services: Services) -> Iterator[Finding]:
    """The bucket is there and ours to use."""
    services.objects.verify()
    yield Finding("bucket", Level.PASS, f"bucket {services.site.bucket!r} is there")


def check_bucket_access(services: Services) -> Iterator[Finding]:
    """Each action that the coordinator needs in the bucket, on an object of its own."""
    probes = probe_bucket(services.objects, services.site.prefix, uuid.uuid4().hex)
    yield judge_probes("bucket_access", probes, _POLICY)


def check_conditional_put(services: Services) -> Iterator[Finding]:
    """The store keeps to conditions: they decide between two markers, and two manifests."""
    paths = JobPaths(services.site.prefix, PROBE_JOB)
    if services.conditional_put():
        if probe_replacing(services.objects, paths) is not None:
            found = "the store refuses to create an object twice"
            yield Finding("conditional_put", Level.PASS, found)
        else:
            yield Finding(
                "conditional_put",
                Level.WARN,
                "the store ignores If-Match, so of two aggregations the later one stands, and "
                "slurmctl gc leaves all files of datasets",
                "upgrade the store to one with conditional PUT, if that matters",
            )
    else:
        yield Finding(
            "conditional_put",
            Level.WARN,
            "the store ignores If-None-Match, so the table decides between two attempts: a write "
            "and a PUT more per task",
            "upgrade the store to one with conditional PUT, if that matters",
        )


def judge_probes(check: str, probes: Sequence[AccessProbe], mend: str) -> Finding:
    """What was tried is allowed; the first refusal speaks for all."""
    refused = [each for each in probes if each.error]
    if not refused:
        names = ", ".join(each.action.partition(":")[2] for each in probes)
        return Finding(check, Level.PASS, f"allowed: {names}")
    found, _, own = refused[0].error.partition("; ")
    actions = ", ".join(each.action for each in refused)
    return Finding(check, Level.FAIL, f"{actions} failed: {found}", own or mend)

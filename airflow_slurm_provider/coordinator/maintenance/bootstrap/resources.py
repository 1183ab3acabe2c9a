"""The table and the bucket: created where they are missing, else compared with `aws_resources.py`.

Stores other than AWS's have no public access block, and some have no encryption or rules. Missing
settings are reported, and the others are made. Some stores accept a setting that they can't apply:
SeaweedFS without keys would refuse every later object. So encryption is tried first, with one
object.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

from botocore.exceptions import ClientError

from airflow_slurm_provider.coordinator.maintenance import aws_resources
from airflow_slurm_provider.coordinator.maintenance.bootstrap.steps import (
    BootstrapRequest,
    Clients,
    Step,
    StepResult,
    Unsupported,
    translated,
)
from airflow_slurm_provider.coordinator.maintenance.doctor.aws import (
    TableDescription,
    table_description,
)
from slurm_worker.backends.errors import code_of
from slurm_worker.backends.s3 import is_aws
from slurm_worker.diagnostics.access_probes import PROBE_JOB
from slurm_worker.errors import UserError
from slurm_worker.protocol.paths import JobPaths

#: A table of its own is usable within half a minute; five are for a bad day.
_WAIT = {"Delay": 2, "MaxAttempts": 150}
#: Where buckets are created without naming it.
_DEFAULT_REGION = "us-east-1"
_DENIED = ("403", "AccessDenied")
_KEEPS = "TransitionDefaultMinimumObjectSize"
_ACTIONS = ("AbortIncompleteMultipartUpload", "NoncurrentVersionExpiration", "Expiration")


def table_steps(clients: Clients, name: str, wanted: BootstrapRequest) -> Iterator[Step]:
    """What becomes of the table and its settings."""
    what = f"DynamoDB table {name!r}"
    with translated(what):
        found = _find_table(clients, name)
        settle = partial(wanted.settle, what, new=found is None)
        if found is None:
            if not wanted.dry_run:
                _create_table(clients, name, wanted)
            outcome = StepResult.WOULD_MAKE if wanted.dry_run else StepResult.MADE
            yield Step("table", outcome, f"table {name!r} with string keys pk and sk, on demand")
        elif found.keys != aws_resources.TABLE_KEYS:
            text = f"table {name!r} has the keys {found.keys_text}, and keys can't be changed"
            yield Step("table", StepResult.UNFIT, text, "name another table in storage.table")
            return
        else:
            yield Step("table", StepResult.THERE, f"table {name!r} with string keys pk and sk")
            yield settle(
                "billing",
                lambda: found.on_demand,
                lambda: clients.dynamodb.update_table(
                    TableName=name, BillingMode=aws_resources.BILLING_MODE
                ),
                ("on demand", "provisioned capacity, which throttles many workers at once"),
            )
    dynamodb = clients.dynamodb
    # Nothing is reported on options that are not requested.
    if wanted.point_in_time:
        yield settle(
            "point_in_time",
            lambda: _restorable(clients, name),
            lambda: _make_restorable(clients, name),
            ("can be restored to any second of the last 35 days", "can't be restored"),
        )
    if wanted.deletion_protection:
        yield settle(
            "deletion_protection",
            lambda: bool(
                dynamodb.describe_table(TableName=name)["Table"].get("DeletionProtectionEnabled")
            ),
            # A new table was created with it.
            lambda: found and dynamodb.update_table(TableName=name, DeletionProtectionEnabled=True),
            ("protected against deletion", "not protected against deletion"),
        )


def bucket_steps(
    clients: Clients, name: str, prefix: str, wanted: BootstrapRequest
) -> Iterator[Step]:
    """What becomes of the bucket, its settings, and the rules for what is below a prefix."""
    what = f"bucket {name!r}"
    with translated(what):
        new = not _bucket_exists(clients, name)
        if not new:
            yield Step("bucket", StepResult.THERE, what)
        elif not wanted.bucket:
            fix = "create it with slurmctl bootstrap --create-bucket; or correct storage.prefix"
            yield Step("bucket", StepResult.MISSING, f"there is no {what}", fix)
            return
        elif wanted.dry_run:
            yield Step("bucket", StepResult.WOULD_MAKE, what)
        else:
            _create_bucket(clients, name)
            yield Step("bucket", StepResult.MADE, f"{what} in {clients.s3.meta.region_name}")
    bucket = _Bucket(clients, name, JobPaths(prefix, PROBE_JOB).probe(uuid.uuid4().hex))
    settle = partial(wanted.settle, what, new=new)
    texts = "closed to the public", "public access is not fully blocked"
    yield settle("public_access", bucket.is_closed, bucket.close, texts)
    texts = "encrypted at rest", "not encrypted at rest by default"
    yield settle("encryption", bucket.is_encrypted, bucket.encrypt, texts)
    rules = aws_resources.lifecycle_rules(prefix)
    names = ", ".join(str(rule["ID"]) for rule in rules)
    texts = f"lifecycle rules {names}", f"some of the lifecycle rules {names} are missing or differ"
    yield settle("lifecycle", lambda: bucket.has(rules), lambda: bucket.add(rules), texts)


def _find_table(clients: Clients, name: str) -> TableDescription | None:
    try:
        return table_description(clients.dynamodb.describe_table(TableName=name)["Table"])
    except ClientError as error:
        if code_of(error) == "ResourceNotFoundException":
            return None
        raise


def _create_table(clients: Clients, name: str, wanted: BootstrapRequest) -> None:
    """Create the table and wait until it can be used."""
    protection = {"DeletionProtectionEnabled": True} if wanted.deletion_protection else {}
    clients.dynamodb.create_table(**aws_resources.table_definition(name), **protection)
    clients.dynamodb.get_waiter("table_exists").wait(TableName=name, WaiterConfig=_WAIT)


def _restorable(clients: Clients, name: str) -> bool:
    found = clients.dynamodb.describe_continuous_backups(TableName=name)
    description = found["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
    return bool(description.get("PointInTimeRecoveryStatus") == "ENABLED")


def _make_restorable(clients: Clients, name: str) -> None:
    clients.dynamodb.update_continuous_backups(
        TableName=name, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
    )


class _Bucket:
    """The settings of one bucket, read and written; `probe` is a key to try them with."""

    def __init__(self, clients: Clients, name: str, probe: str) -> None:
        self._s3 = clients.s3
        self._name = name
        self._probe = probe

    def is_closed(self) -> bool:
        reply = self._read("get_public_access_block", "NoSuchPublicAccessBlockConfiguration")
        found = reply.get("PublicAccessBlockConfiguration")
        return bool(found == aws_resources.PUBLIC_ACCESS_BLOCK)

    def close(self) -> None:
        self._s3.put_public_access_block(
            Bucket=self._name, PublicAccessBlockConfiguration=aws_resources.PUBLIC_ACCESS_BLOCK
        )

    def is_encrypted(self) -> bool:
        """By whichever key."""
        missing = "ServerSideEncryptionConfigurationNotFoundError"
        reply = self._read("get_bucket_encryption", missing)
        return bool(reply.get("ServerSideEncryptionConfiguration", {}).get("Rules"))

    def encrypt(self) -> None:
        if not is_aws(self._s3):
            self._try_encryption()
        rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": aws_resources.ENCRYPTION}}
        self._s3.put_bucket_encryption(
            Bucket=self._name, ServerSideEncryptionConfiguration={"Rules": [rule]}
        )

    def _try_encryption(self) -> None:
        """Write an object as it will be once all are encrypted, and delete it."""
        try:
            self._s3.put_object(
                Bucket=self._name,
                Key=self._probe,
                Body=b"tried",
                ServerSideEncryption=aws_resources.ENCRYPTION,
            )
        except ClientError as error:
            code = code_of(error)
            if code in _DENIED:
                return  # The user of bootstrap may lack the right to write objects.
            raise Unsupported(
                f"not encrypted at rest: the store can't write an encrypted object ({code})",
                "give the store encryption keys, then run slurmctl bootstrap --update; or leave it",
            ) from error
        self._s3.delete_object(Bucket=self._name, Key=self._probe)

    def has(self, rules: list[dict[str, Any]]) -> bool:
        """Whether the bucket has these rules, by their ids, as they should be."""
        found = {rule.get("ID"): rule for rule in self._lifecycle().get("Rules", [])}
        return all(_same(found.get(rule["ID"]), rule) for rule in rules)

    def add(self, rules: list[dict[str, Any]]) -> None:
        """Put these rules beside those that others have made: the store takes all at once."""
        reply = self._lifecycle()
        ours = {rule["ID"] for rule in rules}
        others = [other for other in reply.get("Rules", []) if other.get("ID") not in ours]
        kept = {_KEEPS: reply[_KEEPS]} if _KEEPS in reply else {}
        self._s3.put_bucket_lifecycle_configuration(
            Bucket=self._name, LifecycleConfiguration={"Rules": [*others, *rules]}, **kept
        )

    def _lifecycle(self) -> dict[str, Any]:
        return self._read("get_bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration")

    def _read(self, verb: str, missing: str) -> dict[str, Any]:
        """A setting; empty where the store answers with the error code `missing`."""
        try:
            reply: dict[str, Any] = getattr(self._s3, verb)(Bucket=self._name)
        except ClientError as error:
            if code_of(error) == missing:
                return {}
            raise
        return reply


def _same(found: dict[str, Any] | None, rule: dict[str, Any]) -> bool:
    """Whether a rule does what another one should; stores give back more than they got."""
    if found is None or found.get("Status") != rule["Status"]:
        return False
    prefix = found.get("Filter", {}).get("Prefix", found.get("Prefix", ""))
    if prefix != rule["Filter"]["Prefix"]:
        return False
    return all(
        (found.get(action) or {}).items() >= (rule.get(action) or {}).items() for action in _ACTIONS
    )


def _bucket_exists(clients: Clients, name: str) -> bool:
    try:
        clients.s3.head_bucket(Bucket=name)
    except ClientError as error:
        code = code_of(error)
        if code in ("404", "NoSuchBucket", "NotFound"):
            return False
        if code in _DENIED:
            raise UserError(
                f"storage.prefix: no access to bucket {name!r}",
                "check the name (another account may own that bucket) and the credentials",
            ) from error
        raise
    return True


def _create_bucket(clients: Clients, name: str) -> None:
    region = clients.s3.meta.region_name
    where = {"CreateBucketConfiguration": {"LocationConstraint": region}}
    clients.s3.create_bucket(Bucket=name, **({} if region == _DEFAULT_REGION else where))

"""The table: created where it is missing, else compared with its definition."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from botocore.exceptions import ClientError

from airflow_slurm_provider.coordinator.maintenance import aws_resources
from airflow_slurm_provider.coordinator.maintenance.bootstrap.steps import (
    BootstrapRequest,
    Clients,
    Step,
    StepResult,
    translated,
)
from airflow_slurm_provider.coordinator.maintenance.doctor.aws import (
    TableDescription,
    table_description,
)
from slurm_worker.backends.errors import code_of

#: A table of its own is usable within half a minute; five are for a bad day.
_WAIT = {"Delay": 2, "MaxAttempts": 150}


def table_steps(clients: Clients, name: str, wanted: BootstrapRequest) -> Iterator[Step]:
    """What becomes of the table and its settings."""
    what = f"DynamoDB table {name!r}"
    with translated(what):
        found = _find(clients, name)
        settle = partial(wanted.settle, what, new=found is None)
        if found is None:
            if not wanted.dry_run:
                _create(clients, name, wanted)
            outcome = StepResult.WOULD_MAKE if wanted.dry_run else StepResult.MADE
            yield Step("table", outcome, f"table {name!r} with string keys pk and sk, on demand")
        elif found.keys != aws_resources.TABLE_KEYS:
            yield Step(
                "table",
                StepResult.UNFIT,
                f"table {name!r} has the keys {found.keys_text}, and keys can't be changed",
                "name another table in storage.table",
            )
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


def _find(clients: Clients, name: str) -> TableDescription | None:
    try:
        return table_description(clients.dynamodb.describe_table(TableName=name)["Table"])
    except ClientError as error:
        if code_of(error) == "ResourceNotFoundException":
            return None
        raise


def _create(clients: Clients, name: str, wanted: BootstrapRequest) -> None:
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

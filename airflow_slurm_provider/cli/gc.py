"""`slurmctl gc`: delete objects on S3 that a job no longer needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.options import Common, common_options, job_argument
from airflow_slurm_provider.cli.output import emit, say
from airflow_slurm_provider.units import parse_duration
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import check_job_id

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.maintenance.gc import GcResult


@click.command(epilog="\b\nExample:\n  slurmctl gc flights-2013 --dry-run")
@job_argument
@click.option(
    "--older-than",
    metavar="AGE",
    default="7d",
    show_default=True,
    help="Age after which a replaced version of the dataset is deleted: 90m, 12h, 7d.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and change nothing.")
@common_options
def gc(common: Common, job: str, older_than: str, dry_run: bool) -> int:
    """Delete objects that JOB no longer needs: uncommitted parts, checkpoints, old datasets.

    Never touches objects that a marker or the published manifest names, nor the version of the
    dataset before the published one.
    """
    name, age_s = check_job_id(job, "JOB"), _age(older_than)
    from airflow_slurm_provider.coordinator.maintenance.gc import collect

    with common.services() as services:
        found = collect(
            services, name, older_than_s=age_s, dry_run=dry_run, log=say, actor=common.actor
        )
    emit(common.as_json, found.to_dict(), _fields(found))
    return 0


def _age(text: str) -> float:
    try:
        return parse_duration(text.lower())
    except ValueError:
        raise UserError(f"--older-than: {text!r} is not an age; write 90m, 12h or 7d") from None


def _fields(found: GcResult) -> list[tuple[str, str]]:
    verb = "would delete" if found.dry_run else "deleted"
    fields = [
        ("job", found.job_id),
        (
            verb,
            f"{found.objects.total():,} objects, {found.sizes.total():,} bytes",
        ),
    ]
    for kind, count in sorted(found.objects.items()):
        fields.append((kind, f"{count:,} objects, {found.sizes[kind]:,} bytes"))
    if not found.complete:
        fields.append(("note", "the job is not complete; run gc again when it is"))
    return fields

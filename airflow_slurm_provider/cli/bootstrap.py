"""`slurmctl bootstrap`: create the table and the bucket of a site."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from airflow_slurm_provider.cli.options import Common, common_options
from airflow_slurm_provider.cli.output import emit, show

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.maintenance.bootstrap import BootstrapResult, Step

_WORDS = {
    "there": ("exists", "green"),
    "made": ("created", "green"),
    "would_make": ("would create", "cyan"),
    "differs": ("differs", "yellow"),
    "unsupported": ("unsupported", "yellow"),
    "missing": ("missing", "red"),
    "unfit": ("unusable", "red"),
}


@click.command(
    epilog="\b\nExample:\n  slurmctl bootstrap --create-bucket --dry-run\n"
    "  slurmctl bootstrap --create-bucket --point-in-time"
)
@click.option("--create-bucket", is_flag=True, help="Create the bucket too.")
@click.option(
    "--point-in-time", is_flag=True, help="Enable point-in-time recovery of the table (35 days)."
)
@click.option("--deletion-protection", is_flag=True, help="Protect the table against deletion.")
@click.option("--update", is_flag=True, help="Also change existing settings that differ.")
@click.option("--dry-run", is_flag=True, help="Show what would be created, and change nothing.")
@common_options
def bootstrap(
    common: Common,
    create_bucket: bool,
    point_in_time: bool,
    deletion_protection: bool,
    update: bool,
    dry_run: bool,
) -> int:
    """Create the site's table and bucket, with lifecycle rules, if they are missing.

    Existing settings stay as they are. Settings that differ are listed, and changed only with
    --update. Nothing is ever deleted. Exits with 1 if jobs can't run with the result.
    """
    from airflow_slurm_provider.coordinator.maintenance.bootstrap import BootstrapRequest
    from airflow_slurm_provider.coordinator.maintenance.bootstrap import bootstrap as make
    from airflow_slurm_provider.coordinator.spec.site import load_site

    wanted = BootstrapRequest(
        bucket=create_bucket,
        point_in_time=point_in_time,
        deletion_protection=deletion_protection,
        update=update,
        dry_run=dry_run,
    )
    made = make(load_site(common.site), wanted, log=_ignore if common.as_json else _show)
    if common.as_json:
        emit(True, made.to_dict(), [])
    else:
        show(_summary(made))
    return 0 if made.ok else 1


def _show(step: Step) -> None:
    """Print a step at once, with its fix below it."""
    word, colour = _WORDS[step.outcome.value]
    show(f"  {step.name}: {step.found}", head=f"{word:12}", colour=colour)
    if step.fix:
        show(f"              fix: {step.fix}")


def _ignore(step: Step) -> None:
    """With --json, everything is printed at the end."""


def _summary(made: BootstrapResult) -> str:
    return ", ".join(
        f"{count} {_WORDS[outcome][0]}" for outcome, count in made.counts.items() if count
    )

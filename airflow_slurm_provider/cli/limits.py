"""`slurmctl limits`: how a job's rate limits stand, and which rate a vendor's quota allows."""

from __future__ import annotations

import click

from airflow_slurm_provider.cli.completers import complete_jobs
from airflow_slurm_provider.cli.options import Common, common_options
from airflow_slurm_provider.cli.output import emit
from airflow_slurm_provider.units import format_count
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import check_job_id


@click.command(
    epilog="\b\nExample:\n  slurmctl limits planes-2013\n  slurmctl limits --safe 600/min"
)
@click.argument("job", required=False, shell_complete=complete_jobs)
@click.option("--safe", metavar="QUOTA", help="A vendor's quota: which rate never oversteps it?")
@click.option("--burst", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--send-window",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Seconds.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that share it: fewer reserve more tokens at a time.",
)
@common_options
def limits(
    common: Common,
    job: str | None,
    safe: str | None,
    burst: int,
    send_window: float,
    workers: int,
) -> int:
    """Show the rate limits of JOB, or the rate to configure for a vendor's quota."""
    from airflow_slurm_provider.coordinator.status.rate_limits import rate_for, read_limits

    if safe is not None:
        found = rate_for(safe, burst=burst, send_window_s=send_window, workers=workers)
        if not found.rate:
            raise UserError(
                f"--safe: no rate keeps within {safe}; take a smaller --burst or --send-window"
            )
        fields = [
            ("rate", f"{found.rate:g}/s"),
            ("at most", f"{found.bound:g} requests in any {found.window_s:g} s"),
        ]
        emit(common.as_json, found.to_dict(), fields)
        return 0
    if job is None:
        raise UserError("JOB: is missing; name a job, or ask for a rate with --safe 600/min")
    name = check_job_id(job, "JOB")
    with common.services() as services:
        states = read_limits(services, name)
    fields = [("job", str(name))]
    for each in states:
        used = format_count(each.used)
        if each.quota_per_day is not None:
            used += f" of {each.quota_per_day:,} today"
        fields += [
            (each.name, f"{each.current_rate:g}/s of {each.rate:g}/s, scope {each.scope}"),
            ("", f"used {used}; reserved {each.ahead_s:.1f} s ahead; changed {each.cuts} times"),
        ]
    if not states:
        fields.append(("limits", "none"))
    emit(common.as_json, {"job_id": name, "limits": [each.to_dict() for each in states]}, fields)
    return 0

"""`slurmctl limits`: a job's rate limits, and the rate that a vendor's quota allows."""

from __future__ import annotations

from dataclasses import asdict

import click

from airflow_slurm_provider.cli.options import Common, command, count, optional_job, seconds
from airflow_slurm_provider.cli.rendering.output import emit
from airflow_slurm_provider.units import format_count
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import JobId


@command("slurmctl limits planes-2013", "slurmctl limits --safe 600/min")
@optional_job
@click.option(
    "--safe",
    metavar="QUOTA",
    help="A vendor's quota, such as 600/min. Prints the highest rate that never exceeds it.",
)
@count("--burst", "With --safe: the burst of the limit.", 1)
@seconds("--send-window", "With --safe: the send_window of the limit.", 1.0, above=True)
@count("--workers", "With --safe: worker processes that share it. Fewer reserve more at a time.", 1)
def limits(
    common: Common,
    job: JobId | None,
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
                f"--safe: no rate stays within {safe}; use a smaller --burst or --send-window"
            )
        fields = [
            ("rate", f"{found.rate:g}/s"),
            ("at most", f"{found.bound:g} requests in any {found.window_s:g} s"),
        ]
        return emit(common.as_json, asdict(found), fields)
    if job is None:
        raise UserError("JOB: is missing; give a job id, or a quota with --safe 600/min")
    with common.services() as services:
        states = read_limits(services, job)
    fields = [("job", str(job))]
    for state in states:
        used = format_count(state.used)
        if state.quota_per_day is not None:
            used += f" of {state.quota_per_day:,} today"
        fields += [
            (state.name, f"{state.current_rate:g}/s of {state.rate:g}/s, scope {state.scope}"),
            ("", f"used {used}; reserved {state.ahead_s:.1f} s ahead; {state.cuts} rate changes"),
        ]
    if not states:
        fields.append(("limits", "none"))
    document = {"job_id": job, "limits": [asdict(state) for state in states]}
    return emit(common.as_json, document, fields)

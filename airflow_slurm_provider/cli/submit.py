"""`slurmctl submit`: plan a job and start its workers."""

from __future__ import annotations

from pathlib import Path

import click

from airflow_slurm_provider.cli.options import Common, common_options
from airflow_slurm_provider.cli.rendering.output import emit, say
from airflow_slurm_provider.cli.wait_loop import report_wait, wait_options, wait_until_finished
from airflow_slurm_provider.units import format_count
from slurm_worker.protocol.keys import JobId


@click.command(
    epilog="\b\nExample:\n  slurmctl submit example_dags/backfill_flights/config.yaml "
    "--job-id flights-2013 --wait"
)
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--job-id", metavar="ID", help="Job id, in place of the file's job_id.")
@wait_options
@common_options
def submit(
    common: Common,
    config: Path,
    job_id: str | None,
    wait: bool,
    interval: float,
    timeout: float | None,
    max_failed_items: int | None,
) -> int:
    """Plan the job that CONFIG describes and start its workers.

    It is safe to run again at any point, also after it was killed: it continues where it
    stopped, and never starts the workers twice.
    """
    from airflow_slurm_provider.coordinator import api
    from airflow_slurm_provider.coordinator.spec.job_spec import load_config

    loaded = load_config(config, job_id=job_id)
    with common.services() as services:
        submitted = api.submit(services, loaded, log=say, actor=common.actor)
        earlier = submitted.reattached and submitted.slurm_job_ids
        fields = [
            ("job", submitted.job_id),
            ("items in", format_count(submitted.items)),
            ("planned tasks", format_count(submitted.tasks)),
            ("workers", f"{submitted.workers:,}{', from an earlier submit' if earlier else ''}"),
            ("slurm job", f"{', '.join(submitted.slurm_job_ids)} {submitted.slurm_job_name}"),
        ]
        if not wait:
            return emit(common.as_json, submitted.to_dict(), fields)
        name = JobId(submitted.job_id)
        status = wait_until_finished(services, name, interval=interval, timeout=timeout)
    return report_wait(common, status, max_failed_items, submitted.to_dict(), fields)

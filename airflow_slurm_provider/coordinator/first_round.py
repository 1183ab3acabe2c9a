"""Round 0: the input as tasks, and what a job id that is in use stands for."""

from __future__ import annotations

from collections.abc import Callable

from airflow_slurm_provider.coordinator import sizing
from airflow_slurm_provider.coordinator.config import JobSpec, spec_of
from airflow_slurm_provider.coordinator.inputs import open_input
from airflow_slurm_provider.coordinator.plan import PlanConflict, Planner
from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.errors import UserError
from slurm_worker.jobs import JobRow, RoundRow
from slurm_worker.keys import RoundState

Log = Callable[[str], None]


def check_identity(job: JobRow | None, spec: JobSpec) -> None:
    """Refuse a spec of another input than the job that has its id.

    Raises:
        UserError: naming the job.
    """
    if job is not None and job.identity != spec.identity():
        raise UserError(
            f"job_id: {spec.job_id!r} exists with another input, key or format; give this "
            "one another job_id, or restore the old settings to go on with that job"
        )


def check_no_results(services: Services, spec: JobSpec) -> None:
    """Refuse to plan anew what has been worked on; a list request, for a job without a row.

    Raises:
        UserError: naming the repair.
    """
    folder, storage = services.paths(spec.id).done_folder, services.site.storage
    committed = next(iter(services.objects.list(folder)), None) is not None
    # Another call may have created the job since, and its workers be quick.
    if committed and services.jobs(spec.id).find() is None:
        raise UserError(
            f"job_id: {spec.job_id!r} has results in s3://{services.site.bucket}/{folder} and no "
            f"rows in table {storage.table!r}; slurmctl doctor --repair --job {spec.job_id} brings "
            "the rows back, or give this one another job_id"
        )


def standing_bundle(services: Services, job: JobRow, spec: JobSpec, log: Log) -> JobSpec:
    """The spec with the bundle that the job was created with, whoever chose it.

    Raises:
        UserError: if the spec has another one.
    """
    document = services.objects.get(services.paths(job.job).config(job.config))
    if document is None:
        return sizing.sized(spec, services.bucket, log)  # it was lost, and is shipped anew
    standing = sizing.bundle_of(spec_of(document))
    if spec.bundle not in (None, standing):
        raise UserError(
            f"bundle: {spec.job_id!r} exists with {standing:,} items a task, not {spec.bundle:,}; "
            "give this one another job_id, or restore the old bundle to go on with that job"
        )
    return spec.model_copy(update={"bundle": standing})


def tell_other_input(spec: JobSpec, round_row: RoundRow, version: str, log: Log) -> None:
    """Tell of an input that was written anew since it was planned: the job has what it was."""
    planned = round_row.state is RoundState.OPEN
    if planned and version and round_row.version and version != round_row.version:
        log(
            f"input.path: {spec.input.path} was written again since this job was planned; the job "
            f"keeps the {round_row.items:,} items that were there then: for others give another "
            "job_id"
        )


def plan_input(
    services: Services, spec: JobSpec, job: JobRow, round_row: RoundRow, planner: Planner
) -> None:
    """Write the input's items as the tasks of round 0, and open it.

    Raises:
        UserError: if the input is not right; a job without task rows is taken back.
    """
    # Needs pyarrow, for which no other command should wait.
    from airflow_slurm_provider.coordinator.key_check import KeyCheck

    try:
        with KeyCheck() as keys:
            items = open_input(spec.source, services.bucket)
            planner.plan(
                round_row,
                keys.watch(items),
                check=lambda: keys.check(lambda: open_input(spec.source, services.bucket)),
                retried=dict,
            )
    except PlanConflict:
        raise
    except UserError:
        if _has_tasks(services, job):
            # An earlier submit was cut short among its rows. They are of the input as it was
            # then, and a job made anew would keep them beside other segments.
            raise
        # The input is at fault: leave nothing that a corrected submit would trip over.
        for key in services.objects.list(services.paths(spec.id).segments(0)):
            services.objects.delete(key)
        services.jobs(spec.id).delete()
        raise


def _has_tasks(services: Services, job: JobRow) -> bool:
    """Whether any task row exists; one request per shard."""
    table = services.tasks(job)
    return any(table.page(shard, "", 1) for shard in range(job.shards))

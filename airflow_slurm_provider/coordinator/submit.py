"""One Slurm array of workers per submission, never twice, whatever dies between.

    intent row (token)  →  files on the cluster  →  sbatch, token in its name  →  id in the row
          │ crash here: the next caller finds the intent, goes on with the same token;
          │ the cluster's own lock (slurm/client.py) lets one sbatch per name through.

Requests: one write for the intent, one for the id.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from airflow_slurm_provider.coordinator import ship
from airflow_slurm_provider.coordinator.config import JobSpec
from airflow_slurm_provider.coordinator.progress import latest, read_progress
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.slurm.script import render_script
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.jobs import JobRow, SubmissionRow
from slurm_worker.keys import JobId, SubmitState


@dataclass(frozen=True, slots=True)
class Array:
    """The array that works on a round; `reattached` if an earlier call had submitted it."""

    slurm_job_id: str
    slurm_job_name: str
    workers: int
    submission: str
    reattached: bool


def ensure_array(
    services: Services,
    spec: JobSpec,
    job: JobRow,
    round_no: int,
    tasks: int,
    log: Callable[[str], None],
) -> Array:
    """The round's array: the one that was submitted, or a new one.

    A new one is also submitted where the last has ended and left tasks undone.

    Raises:
        UserError: if Slurm refuses the options; nothing stays behind then.
        ServiceError: if the cluster can't be reached; calling again goes on.
    """
    jobs = services.jobs(spec.id)
    of_round = [each for each in jobs.submissions() if each.round_no == round_no]
    last = latest(of_round)
    workers = max(1, min(spec.workers, tasks))
    if last is not None and last.state is SubmitState.SUBMITTED:
        if not _left_work_undone(services, spec, last):
            log(f"array {last.slurm_job_id} was submitted before; going on with it")
            return _array(spec, last, last.slurm_job_id, reattached=True)
        log(f"array {last.slurm_job_id} has ended and left tasks; submitting new workers")
        last = jobs.intend(round_no, last.number + 1, workers)
    elif last is None:
        last = jobs.intend(round_no, 1, workers)
    slurm_job_id = _submit(services, spec, job, last)
    jobs.submitted(last, slurm_job_id)
    log(f"submitted array {slurm_job_id} of {last.workers} workers")
    return _array(spec, last, slurm_job_id, reattached=False)


def job_name(job_id: JobId, submission: SubmissionRow) -> str:
    """The Slurm job's name: what finds the array again, on any doubt."""
    return f"{job_id}.{submission.label}.{submission.token}"


def _submit(services: Services, spec: JobSpec, job: JobRow, submission: SubmissionRow) -> str:
    name = job_name(spec.id, submission)
    command = [
        *shlex.split(ship.ship_worker(services)),
        *ship.worker_arguments(services, spec, job.config, submission.label),
    ]
    try:
        script = render_script(
            spec.slurm_options,
            name=name,
            workers=submission.workers,
            command=command,
            environment=services.site.aws.environment(),
        )
        return services.slurm.submit(name, script, folder=spec.id)
    except UserError as error:
        if not isinstance(error, ServiceError):
            # Refused for certain: forget the intent, so that a corrected submit starts clean.
            services.jobs(spec.id).forget_submission(submission)
        raise


def _left_work_undone(services: Services, spec: JobSpec, last: SubmissionRow) -> bool:
    if read_progress(services, spec.id).complete:
        return False
    array = services.slurm.array(last.slurm_job_id)
    return not array.unknown and array.alive == 0


def _array(
    spec: JobSpec, submission: SubmissionRow, slurm_job_id: str, *, reattached: bool
) -> Array:
    return Array(
        slurm_job_id=slurm_job_id,
        slurm_job_name=job_name(spec.id, submission),
        workers=submission.workers,
        submission=submission.label,
        reattached=reattached,
    )

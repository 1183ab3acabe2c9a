"""One Slurm array of workers per submission, never twice, whatever dies between.

    intent row (token)  →  files on the cluster  →  sbatch, token in its name  →  id in the row
          │ crash here: the next caller finds the intent, goes on with the same token;
          │ the cluster's own lock (slurm/client.py) lets one sbatch per name through.

An intent and its token stay for good, also where Slurm refuses the array: another caller may
have had one accepted under the same token, and it is how that array is found. What was refused
is only noted, so that the next caller may want other workers under the same token.

More workers than one array may hold (``MaxArraySize``) become several arrays of the same
token; where the account may not submit so many (``MaxSubmitJobs``), as many as it takes.
Requests: one write for the intent, one for the ids.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from airflow_slurm_provider.coordinator.status.arrays import (
    arrays_of,
    ids_of,
    known_arrays,
)
from airflow_slurm_provider.coordinator.status.progress import (
    blocked_reason,
    latest,
    of_round,
    read_progress,
)
from airflow_slurm_provider.coordinator.submission import upload
from airflow_slurm_provider.coordinator.submission.credentials import put_credentials
from airflow_slurm_provider.slurm.array_state import ArrayKey, named
from airflow_slurm_provider.slurm.client import (
    SubmissionCancelledError,
    SubmitLimitError,
    SubmitRefusedError,
)
from airflow_slurm_provider.slurm.options import SlurmOptions
from airflow_slurm_provider.slurm.script import render_script
from slurm_worker.protocol.job_rows import JobRow, RoundRow, SubmissionRow, job_name
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobId, SubmitState

#: What a call may take where the job sets no timeout.
_LONG_CALL_S = 60.0


@dataclass(frozen=True, slots=True)
class Workers:
    """The arrays that work on a round; `reattached` if an earlier call had submitted them.

    Args:
        submission: its label; empty where the job is paused or stopped and never had workers.
        config: digest of the configuration that they were started with.
    """

    slurm_job_ids: tuple[str, ...]
    slurm_job_name: str
    workers: int
    submission: str
    reattached: bool
    config: str = ""


def ensure_workers(
    services: Services,
    spec: JobSpec,
    job: JobRow,
    round_row: RoundRow,
    tasks: int,
    log: Callable[[str], None],
) -> Workers:
    """The round's workers: those that were submitted, or new ones.

    New ones are also submitted where all others have ended and left tasks undone. A job that
    is paused or stopped gets none.

    Raises:
        UserError: if Slurm refuses the options, the login or the nodes' role.
        ServiceError: if the cluster can't be reached; calling again goes on.
    """
    jobs = services.jobs(spec.id)
    submissions = of_round(jobs.submissions(), round_row.number)
    last = latest(submissions)
    with_arrays = latest([each for each in submissions if each.slurm_job_ids])
    shown = with_arrays or latest([each for each in submissions if not each.empty]) or last
    number = 1
    why = blocked_reason(job)
    if why:
        log(f"{spec.id} {why}; no workers are started; slurmctl resume {spec.id} goes on")
        if shown is None:
            return Workers((), "", 0, "", reattached=True)
        return _workers(spec, shown, shown.slurm_job_ids, shown.workers, reattached=True)
    # Slurm may have refused workers that were to come beside others, which are at work.
    beside = last is not None and last.refused and with_arrays is not None
    if last is not None and shown is not None and (last.state is SubmitState.SUBMITTED or beside):
        arrays = arrays_of(services, spec.id, submissions)
        enough = _skip_reason(services, spec, arrays)
        if enough:
            log(enough)
            return _workers(spec, shown, shown.slurm_job_ids, shown.workers, reattached=True)
        left = f"{named(ids_of(arrays))} has ended and left" if arrays else "nobody works on the"
        log(f"{left} tasks; submitting new workers")
        # Should they have left tasks because they did not find them: see `generations`.
        jobs.begin_generation()
        number = last.next_number
        last = None
    if last is None or last.refused:
        wanted = useful_workers(spec, spec.workers, tasks, log)
        most = services.slurm.max_array_size()
        last = jobs.record_intent(
            round_row.number, number if last is None else last.number, wanted, most
        )
    return submit_workers(services, spec, job, round_row, last, log)


def submit_workers(
    services: Services,
    spec: JobSpec,
    job: JobRow,
    round_row: RoundRow,
    submission: SubmissionRow,
    log: Callable[[str], None],
) -> Workers:
    """Carry out a submission that was intended, whoever began with it.

    Raises:
        SubmitRefusedError: if Slurm refuses the options; where no array was submitted, the
            intent says so then.
        SubmissionCancelledError: if the job was cancelled meanwhile; calling again submits anew.
        UserError: if the login or the nodes' role is refused; calling again goes on.
        ServiceError: if the cluster can't be reached; calling again goes on.
    """
    if submission.empty:
        raise SubmissionCancelledError(_cancelled(spec.id))
    options = _options(spec, round_row, submission.number)
    slurm_job_ids: list[str] = []
    try:
        workers = _submit(services, spec, job, submission, options, slurm_job_ids, log)
    except SubmissionCancelledError as error:
        # Its names are withdrawn for good, and whoever did it may have died before it said so.
        services.jobs(spec.id).record_submitted(submission, slurm_job_ids)
        raise SubmissionCancelledError(_cancelled(spec.id)) from error
    standing = _note(services.jobs(spec.id), submission, slurm_job_ids)
    if standing.token != submission.token:
        # The row was lost, and another call has intended the same workers since: one of both.
        log(f"{named(slurm_job_ids)} is one too many and is cancelled; another call submits too")
        ours = replace(submission, slurm_job_ids=tuple(slurm_job_ids))
        services.slurm.cancel(known_arrays(spec.id, ours))
        return submit_workers(services, spec, job, round_row, standing, log)
    log(f"submitted {named(slurm_job_ids)} of {workers} workers")
    found = _workers(spec, submission, tuple(slurm_job_ids), workers, reattached=False)
    return replace(found, config=job.config)


def _cancelled(job_id: JobId) -> str:
    return (
        f"job_id: {job_id!r} was cancelled while its workers were submitted; submit it again for "
        "new ones"
    )


def audit_workers(
    services: Services, job_id: JobId, workers: Workers, actor: str, action: str = "submitted"
) -> None:
    """Note who has submitted workers, and with which configuration."""
    services.jobs(job_id).audit(
        actor,
        action,
        {
            "arrays": ", ".join(workers.slurm_job_ids),
            "workers": workers.workers,
            "submission": workers.submission,
            "config": workers.config,
        },
    )


def useful_workers(spec: JobSpec, asked: int, tasks: int, log: Callable[[str], None]) -> int:
    """How many workers have something to do: at most one per task, and no more than limits feed.

    By Little's law a limit of r per second keeps r * t calls under way, where a call takes t
    seconds: the item's timeout, or a minute where there is none.
    """
    wanted = max(1, min(asked, tasks))
    under_way = spec.worker.concurrency * spec.worker.processes
    longest_s = spec.worker.item_timeout or _LONG_CALL_S
    for name, limit in spec.limits.items():
        fed = math.ceil((limit.rate * longest_s + limit.burst) / under_way)
        if fed < wanted:
            log(
                f"limit {name!r} of {limit.rate:g}/s keeps {fed} workers of {under_way} items at a "
                f"time busy, even if each takes {longest_s:g} s; submitting no more than these"
            )
            wanted = fed
    return wanted


def _note(jobs: JobTable, submission: SubmissionRow, slurm_job_ids: Sequence[str]) -> SubmissionRow:
    """Note the arrays that a submission has; return its row, of another token where it is lost."""
    standing = jobs.record_submitted(submission, slurm_job_ids)
    if standing is None:
        kept = jobs.restore_submission(submission)
        standing = jobs.record_submitted(submission, slurm_job_ids) or kept
    return standing


def _options(spec: JobSpec, round_row: RoundRow, number: int) -> SlurmOptions:
    """The job's options under those of the round; only the first submission waits."""
    delay = {"begin": f"now+{round_row.delay_s}"} if round_row.delay_s and number == 1 else {}
    return SlurmOptions.from_mapping({**spec.slurm, **round_row.slurm, **delay})


def _submit(
    services: Services,
    spec: JobSpec,
    job: JobRow,
    submission: SubmissionRow,
    options: SlurmOptions,
    submitted: list[str],
    log: Callable[[str], None],
) -> int:
    """The workers in the arrays, whose ids are appended to `submitted` one after the other."""
    command = [
        *shlex.split(upload.upload_worker(services)),
        *upload.worker_arguments(services, spec, job.config, submission.label),
    ]

    environment = {
        **services.site.aws.environment(),
        **put_credentials(services, spec.id),
    }

    def submit_part(part: int, size: int) -> str:
        name = job_name(spec.id, submission, part)
        script = render_script(
            options,
            name=name,
            workers=size,
            command=command,
            environment=environment,
        )
        try:
            return services.slurm.submit(name, script, folder=spec.id)
        except SubmitRefusedError:
            # The cluster had no array of this token, not even of an earlier call whose reply
            # was lost, so a corrected submit may want others. Behind an array that it has
            # taken, the submission is carried out.
            if part == 0:
                services.jobs(spec.id).record_refusal(submission)
            raise

    return _submit_parts(submission.sizes(), submit_part, submitted, log)


def _submit_parts(
    sizes: Sequence[int],
    submit_part: Callable[[int, int], str],
    submitted: list[str],
    log: Callable[[str], None],
) -> int:
    workers = 0
    for part, wanted in enumerate(sizes):
        size = wanted
        while len(submitted) == part:
            try:
                submitted.append(submit_part(part, size))
            except SubmitLimitError as error:
                if size == 1 and not submitted:
                    raise
                if size == 1:
                    break
                log(f"{error}; trying {size // 2} workers instead of {size}")
                size //= 2
        if len(submitted) == part:
            break
        workers += size
        if size < wanted:
            break
    return workers


def _skip_reason(services: Services, spec: JobSpec, arrays: Sequence[ArrayKey]) -> str:
    """Why no more workers are needed; empty where these have ended and left tasks."""
    progress = read_progress(services, spec.id)
    if progress.complete:
        classes = ",".join({**progress.failed, **progress.task_errors})
        again = f"; what failed runs again by slurmctl retry {spec.id} --errors={classes}"
        return f"every task has ended; no workers are needed{again if classes else ''}"
    array = services.slurm.together(arrays)
    if array.unknown or array.alive:
        return f"{named(ids_of(arrays))} was submitted before; going on with it"
    # The rows were read first: the workers may have done the rest and ended since.
    if read_progress(services, spec.id).complete:
        return "every task has ended; no workers are needed"
    return ""


def _workers(
    spec: JobSpec,
    submission: SubmissionRow,
    slurm_job_ids: tuple[str, ...],
    workers: int,
    *,
    reattached: bool,
) -> Workers:
    return Workers(
        slurm_job_ids=slurm_job_ids,
        slurm_job_name=job_name(spec.id, submission),
        workers=workers,
        submission=submission.label,
        reattached=reattached,
    )

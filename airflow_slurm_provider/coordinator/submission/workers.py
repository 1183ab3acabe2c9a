"""One Slurm array of workers per submission, never two, even if a process dies in between.

    intent row (token)  →  files on the cluster  →  sbatch, token in its name  →  id in the row
          │ crash here: the next call finds the intent, and continues with the same token;
          │ the cluster's own lock (slurm/client.py) allows one sbatch per name.

An intent and its token stay for good, even if Slurm refuses the array: another call may have had
an array accepted under the same token, and the token finds that array. A refusal is only recorded.
Then the next call may intend a different number of workers under the same token.

More workers than one array may hold (``MaxArraySize``) become several arrays of the same token. If
the account may not submit so many (``MaxSubmitJobs``), as many are submitted as it allows.
Requests: one write for the intent, one for the ids.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from airflow_slurm_provider.coordinator.services import Log, Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from airflow_slurm_provider.coordinator.status.arrays import (
    arrays_of,
    ids_of,
    known_arrays,
    settled_state,
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
from airflow_slurm_provider.units import format_count
from slurm_worker.protocol.job_rows import JobRow, RoundRow, SubmissionRow, job_name
from slurm_worker.protocol.keys import JobId, SubmitState
from slurm_worker.protocol.ports import Value

#: The longest time of a call, in seconds, if the job sets no timeout.
_LONG_CALL_S = 60.0


@dataclass(frozen=True, slots=True)
class VerbResult:
    """The result of a verb that may submit workers; `slurm_job_ids` are their arrays."""

    job_id: str
    slurm_job_ids: tuple[str, ...] = field(default=(), kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {**asdict(self), "slurm_job_ids": list(self.slurm_job_ids)}


@dataclass(frozen=True, slots=True)
class Workers:
    """The arrays that work on a round."""

    slurm_job_ids: tuple[str, ...]
    slurm_job_name: str
    workers: int
    submission: str  #: its label; empty if the job is paused or stopped and never had workers
    reattached: bool  #: an earlier call has submitted them
    config: str = ""  #: digest of the configuration that they were started with


def ensure_workers(
    services: Services, spec: JobSpec, job: JobRow, round_row: RoundRow, tasks: int, log: Log
) -> Workers:
    """The round's workers: those that were submitted before, or new ones.

    New ones are also submitted if all others have ended and left unfinished tasks. A job that is
    paused or stopped gets none.

    Raises:
        UserError: if Slurm refuses the options, the login or the nodes' role.
        ServiceError: if the cluster can't be reached; calling again continues.
    """
    jobs = services.jobs(spec.id)
    submissions = of_round(jobs.submissions(), round_row.number)
    last = latest(submissions)
    with_arrays = latest([row for row in submissions if row.slurm_job_ids])
    shown = with_arrays or latest([row for row in submissions if not row.empty]) or last
    number = 1 if last is None else last.number
    if reason := blocked_reason(job):
        log(f"{spec.id} {reason}; no workers are started; to continue: slurmctl resume {spec.id}")
        if shown is None:
            return Workers((), "", 0, "", reattached=True)
        return _existing(spec.id, shown)
    # Slurm may have refused additional workers, while others run.
    only_added = last is not None and last.refused and with_arrays is not None
    submitted = last is not None and last.state is SubmitState.SUBMITTED
    if last is not None and shown is not None and (submitted or only_added):
        arrays = arrays_of(services, spec.id, submissions)
        if skip_reason := _skip_reason(services, spec, arrays, log):
            log(skip_reason)
            return _existing(spec.id, shown)
        gone = f"no worker of {named(ids_of(arrays))} is left"
        ended = gone if arrays else "no workers were submitted"
        log(f"{ended}, and tasks are unfinished; submitting new workers")
        # The workers may have left tasks because they did not find them: see `generations`.
        jobs.begin_generation()
        number, last = last.next_number, None
    if last is None or last.refused:
        wanted = useful_workers(spec, spec.workers, tasks, log)
        array_size = services.slurm.max_array_size()
        last = jobs.record_intent(round_row.number, number, wanted, array_size)
    return submit_workers(services, spec, job, round_row, last, log)


def submit_workers(
    services: Services,
    spec: JobSpec,
    job: JobRow,
    round_row: RoundRow,
    submission: SubmissionRow,
    log: Log,
) -> Workers:
    """Carry out a submission that this call or another has intended.

    Raises:
        SubmitRefusedError: if Slurm refuses the options; if no array was submitted, the intent
            records the refusal.
        SubmissionCancelledError: if the job was cancelled meanwhile; calling again submits again.
        UserError: if the login or the nodes' role is refused; calling again continues.
        ServiceError: if the cluster can't be reached; calling again continues.
    """
    if submission.empty:
        raise SubmissionCancelledError(_cancelled(spec.id))
    jobs, options = services.jobs(spec.id), _options(spec, round_row, submission.number)
    slurm_job_ids: list[str] = []
    try:
        workers = _submit(services, spec, job, submission, options, slurm_job_ids, log)
    except SubmissionCancelledError as error:
        # Its names are withdrawn for good. The call that did it may have died before it wrote this.
        jobs.record_submitted(submission, slurm_job_ids)
        raise SubmissionCancelledError(_cancelled(spec.id)) from error
    standing = jobs.record_submitted(submission, slurm_job_ids)
    if standing is None:
        # The row was lost: it has another token now if another call has intended the same workers.
        restored = jobs.restore_submission(submission)
        standing = jobs.record_submitted(submission, slurm_job_ids) or restored
    if standing.token != submission.token:
        log(f"another call submits the same workers; cancelling {named(slurm_job_ids)}")
        ours = replace(submission, slurm_job_ids=tuple(slurm_job_ids))
        services.slurm.cancel(known_arrays(spec.id, ours))
        return submit_workers(services, spec, job, round_row, standing, log)
    log(f"submitted {named(slurm_job_ids)} with {format_count(workers, 'worker')}")
    ids, name = tuple(slurm_job_ids), job_name(spec.id, submission)
    return Workers(ids, name, workers, submission.label, reattached=False, config=job.config)


def _cancelled(job_id: JobId) -> str:
    return (
        f"job_id: {job_id!r} was cancelled while its workers were being submitted; submit it again "
        "for new workers"
    )


def audit_workers(
    services: Services, job_id: JobId, workers: Workers, actor: str, action: str = "submitted"
) -> None:
    """Record in the audit log who has submitted workers, and with which configuration."""
    detail: dict[str, Value] = {
        "arrays": ", ".join(workers.slurm_job_ids),
        "workers": workers.workers,
        "submission": workers.submission,
        "config": workers.config,
    }
    services.jobs(job_id).audit(actor, action, detail)


def useful_workers(spec: JobSpec, requested: int, tasks: int, log: Log) -> int:
    """How many workers have something to do: at most one per task, and what the limits allow.

    By Little's law, a limit of r per second keeps r * t calls running if a call takes t seconds:
    the item's timeout, or a minute if there is none.
    """
    wanted = max(1, min(requested, tasks))
    calls = spec.worker.concurrency * spec.worker.processes
    longest_s = spec.worker.item_timeout or _LONG_CALL_S
    for name, limit in spec.limits.items():
        busy = math.ceil((limit.rate * longest_s + limit.burst) / calls)
        if busy < wanted:
            log(
                f"limit {name!r} of {limit.rate:g}/s keeps at most "
                f"{format_count(busy, 'worker')} busy, with {calls} calls at a time of "
                f"{longest_s:g} s each; submitting only {busy}"
            )
            wanted = busy
    return wanted


def _options(spec: JobSpec, round_row: RoundRow, number: int) -> SlurmOptions:
    """The job's options, with those of the round over them; only the first submission waits."""
    delay = {"begin": f"now+{round_row.delay_s}"} if round_row.delay_s and number == 1 else {}
    return SlurmOptions.from_mapping({**spec.slurm, **round_row.slurm, **delay})


def _submit(
    services: Services,
    spec: JobSpec,
    job: JobRow,
    submission: SubmissionRow,
    options: SlurmOptions,
    submitted: list[str],
    log: Log,
) -> int:
    """Append the arrays' ids to `submitted`, also before an error; return the workers' number."""
    command = [
        *shlex.split(upload.upload_worker(services)),
        *upload.worker_arguments(services, spec, job.config, submission.label),
    ]
    environment = {**services.site.aws.environment(), **put_credentials(services, spec.id)}
    workers = 0
    for part, wanted in enumerate(submission.sizes()):
        name, size = job_name(spec.id, submission, part), wanted
        while len(submitted) == part:
            script = render_script(
                options, name=name, workers=size, command=command, environment=environment
            )
            try:
                submitted.append(services.slurm.submit(name, script, folder=spec.id))
            except SubmitRefusedError:
                # The cluster has no array of this token, not even from an earlier call whose reply
                # was lost. So a corrected submit may intend other workers. If it has accepted an
                # array, the submission counts as carried out.
                if part == 0:
                    services.jobs(spec.id).record_refusal(submission)
                raise
            except SubmitLimitError as error:
                if size == 1:
                    if part == 0:
                        raise
                    return workers
                log(f"{error}; trying {size // 2} workers instead of {size}")
                size //= 2
        workers += size
        if size < wanted:
            break
    return workers


def _skip_reason(services: Services, spec: JobSpec, arrays: Sequence[ArrayKey], log: Log) -> str:
    """Why no more workers are needed; empty if these have ended and left unfinished tasks."""
    progress = read_progress(services, spec.id)
    if progress.complete:
        classes = ",".join({**progress.failed, **progress.task_errors})
        retry = f"; to retry what failed: slurmctl retry {spec.id} --errors={classes}"
        return f"all tasks have ended; no workers are needed{retry if classes else ''}"
    array = settled_state(services, arrays, log)
    if array.unknown or array.alive:
        return f"workers of {named(ids_of(arrays))} are left; no new ones are submitted"
    # The rows were read first: the workers may have finished the rest and ended since.
    if read_progress(services, spec.id).complete:
        return "all tasks have ended; no workers are needed"
    return ""


def _existing(job_id: JobId, submission: SubmissionRow) -> Workers:
    name, label = job_name(job_id, submission), submission.label
    return Workers(submission.slurm_job_ids, name, submission.workers, label, reattached=True)

"""Steer a job that is under way: pause, resume, more workers, cancel.

Each may be cut short at any point and called again, and notes in the audit trail who has
asked. New workers come by the protocol of `workers.py`: an intent, then one ``sbatch``.

    resume   the intent of who replaces the workers that left  →  pause and breaker cleared
             →  sbatch. Cut short before the second step it is still paused, after it the
             intent stands, and whoever looks for workers next carries it out.

Requests: a few reads and writes of the job's rows; for workers also a snapshot, one
``squeue`` and one ``sacct``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from typing import Any

from airflow_slurm_provider.coordinator import spec_store
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from airflow_slurm_provider.coordinator.status.arrays import (
    arrays_of,
    ids_of,
    known_arrays,
    open_names,
)
from airflow_slurm_provider.coordinator.status.progress import (
    check_running,
    latest,
    of_round,
    progress_of,
)
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot, read_snapshot
from airflow_slurm_provider.coordinator.submission.workers import (
    Workers,
    audit_workers,
    ensure_workers,
    submit_workers,
    useful_workers,
)
from airflow_slurm_provider.slurm.array_state import ArrayKey, ArrayState, named
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol.job_rows import JobRow, RoundRow, SubmissionRow
from slurm_worker.protocol.keys import JobId, RoundState, SubmitState

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ControlResult:
    """What `pause`, `resume` and `add_workers` came to.

    Args:
        changed: this call has paused or resumed the job; false where it was so before.
        paused: who has paused the job; empty where it is not paused.
        workers: new workers that this call has submitted.
        slurm_job_ids: their arrays.
    """

    job_id: str
    changed: bool
    paused: str = ""
    workers: int = 0
    slurm_job_ids: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {**asdict(self), "slurm_job_ids": list(self.slurm_job_ids)}


def pause(services: Services, job_id: JobId, *, actor: str = "slurmctl") -> ControlResult:
    """Have the workers finish the task they hold and leave; who waits goes on waiting.

    Raises:
        UserError: if there is no such job.
    """
    jobs = services.jobs(job_id)
    job = jobs.get()
    if job.paused:
        return ControlResult(job_id, changed=False, paused=job.paused)
    paused = jobs.pause(actor)
    jobs.audit(actor, "paused", {})
    return ControlResult(job_id, changed=True, paused=paused)


def resume(
    services: Services, job_id: JobId, *, log: Log, actor: str = "slurmctl"
) -> ControlResult:
    """Undo a pause and reset a breaker that a handler has tripped; replace workers that left.

    A job that is neither paused nor stopped gets new workers where none is left.

    Args:
        services: the edges.
        job_id: the job.
        log: told of progress.
        actor: who asks, for the audit trail.

    Raises:
        UserError: if there is no such job, or Slurm refuses its options.
        ServiceError: if a service can't be reached, or Slurm can't say who is left; calling
            again goes on.
    """
    jobs = services.jobs(job_id)
    job = jobs.get()
    halted = bool(job.paused or job.stop)
    snapshot = read_snapshot(services, job_id)
    round_row = _open_round(snapshot)
    if halted:
        if round_row is not None:
            _intend_replacements(services, job, snapshot, round_row, log)
        jobs.resume()
        jobs.audit(actor, "resumed", {"paused": job.paused, "stop": job.stop})
    if round_row is None:
        log("the job's plan was cut short; submit it again to go on")
        return ControlResult(job_id, changed=halted)
    job, spec = jobs.get(), spec_store.read_spec(services, job)
    tasks = progress_of(snapshot).unfinished_tasks
    workers = ensure_workers(services, spec, job, round_row, tasks, log)
    if workers.reattached:
        return ControlResult(job_id, changed=halted)
    audit_workers(services, job_id, workers, actor)
    return _with(job_id, workers, changed=halted)


def add_workers(
    services: Services, job_id: JobId, count: int, *, log: Log, actor: str = "slurmctl"
) -> ControlResult:
    """Submit more workers of the job's latest round, beside those that are at work.

    No more than have something to do (`submit.useful_workers`). The job's configuration has
    their number from then on, also for its later rounds. A submission that was cut short is
    carried out first, in place of a new one; so are two calls at the same moment one.

    Args:
        services: the edges.
        job_id: the job.
        count: how many.
        log: told of progress.
        actor: who asks, for the audit trail.

    Raises:
        UserError: if more workers would have nothing to do, or Slurm refuses the options.
        ServiceError: if a service can't be reached; calling again goes on.
    """
    if count < 1:
        raise UserError(f"workers: {count} is no number of workers to add; add 1 or more")
    jobs = services.jobs(job_id)
    job = jobs.get()
    check_running(job)
    snapshot = read_snapshot(services, job_id)
    round_row = _open_round(snapshot)
    if round_row is None:
        raise UserError(f"job_id: {job_id!r} is not planned yet; run slurmctl submit first")
    submissions = of_round(jobs.submissions(), round_row.number)
    last = latest(submissions)
    spec = spec_store.read_spec(services, job)
    tasks = progress_of(snapshot).unfinished_tasks
    if last is None or (last.state is not SubmitState.SUBMITTED and not last.refused):
        log("an earlier submission was cut short; it is carried out now, and none is added")
        workers = ensure_workers(services, spec, job, round_row, tasks, log)
    else:
        alive = _look(services, job_id, submissions).alive
        more = _useful(spec, job_id, alive, count, tasks, log)
        raised = replace(job, config=spec_store.store_more_workers(services, job, alive + more))
        most = services.slurm.max_array_size()
        added = jobs.record_intent(round_row.number, last.next_number, more, most, asked=True)
        workers = submit_workers(services, spec, raised, round_row, added, log)
        # Not before Slurm has taken them: what it refuses must not be what others go on with.
        jobs.set_config(raised.config)
    audit_workers(services, job_id, workers, actor, "added workers")
    return _with(job_id, workers, changed=True)


def cancel(services: Services, job_id: JobId, *, actor: str = "slurmctl") -> list[str]:
    """Cancel the job's arrays that wait or run, and whatever is about to be submitted.

        each submission without an id: its name is withdrawn on the cluster, so that no array
        of it begins  →  scancel by name, until Slurm has done it  →  ids into the rows
        →  an empty submission behind the last of each round, in place of one that is just
        being intended; a caller that was paused may be at an earlier round

    Leases run out by themselves, so the job can be submitted again.

    Returns:
        The ids of the arrays that waited or ran.

    Raises:
        ServiceError: if the cluster can't be reached or arrays are left; calling again goes on.
    """
    jobs = services.jobs(job_id)
    jobs.get()
    cancelled: list[str] = []
    barred: set[int] = set()
    rounds = range(1)
    while not barred.issuperset(rounds):
        submissions = jobs.submissions()
        cancelled += _cancel_all(services, job_id, submissions)
        rounds = range(1 + max((each.number for each in jobs.rounds()), default=0))
        for number in set(rounds) - barred:
            last = latest(of_round(submissions, number))
            # Whoever intends workers at this moment takes this very number: one of us does.
            if jobs.block_submission(number, 1 if last is None else last.number + 1).empty:
                barred.add(number)
    jobs.audit(actor, "cancelled", {"arrays": ", ".join(cancelled)})
    return cancelled


def _cancel_all(services: Services, job_id: JobId, submissions: list[SubmissionRow]) -> list[str]:
    """Cancel what these submissions have or may have submitted; the ids of what was alive."""
    names = [name for each in submissions for name in open_names(job_id, each)]
    ids = services.slurm.withdraw(names, job_id) if names else {}
    arrays = [key for each in submissions for key in known_arrays(job_id, each)]
    arrays += [ArrayKey("", name) for name in names]
    cancelled = services.slurm.cancel(arrays)
    for each in submissions:
        if each.state is SubmitState.INTENT:
            found = (ids.get(name) for name in open_names(job_id, each))
            services.jobs(job_id).record_submitted(
                each, [job for job in takewhile(bool, found) if job]
            )
    return ids_of(cancelled)


def _intend_replacements(
    services: Services, job: JobRow, snapshot: Snapshot, round_row: RoundRow, log: Log
) -> None:
    """Write the intent of new workers in place of those that have left, or are leaving."""
    jobs = services.jobs(job.job)
    submissions = of_round(jobs.submissions(), round_row.number)
    last, tasks = latest(submissions), progress_of(snapshot).unfinished_tasks
    if not tasks or last is None:
        return
    if last.state is not SubmitState.SUBMITTED and not last.refused:
        return
    spec = spec_store.read_spec(services, job)
    array = _look(services, job.job, submissions)
    # A worker that runs and holds nothing has seen the pause; one that holds a task looks
    # again after it, and goes on.
    staying = array.alive - array.running + min(array.running, _holders(snapshot))
    missing = useful_workers(spec, spec.workers, tasks, log) - staying
    if missing > 0:
        most = services.slurm.max_array_size()
        jobs.record_intent(round_row.number, last.next_number, missing, most, asked=True)


def _holders(snapshot: Snapshot) -> int:
    """Elements of arrays whose workers hold a task now; an element may be several workers."""
    live = (row for row in snapshot.leased if row.lease_until_ms > snapshot.at_ms)
    return len({row.owner.partition("-")[0] for row in live})


def _look(services: Services, job_id: JobId, submissions: list[SubmissionRow]) -> ArrayState:
    arrays = arrays_of(services, job_id, submissions)
    array = services.slurm.together(arrays)
    if array.unknown:
        raise ServiceError(
            f"cluster: Slurm doesn't say yet whether {named(ids_of(arrays))} has ended; try again"
        )
    return array


def _useful(spec: JobSpec, job_id: JobId, alive: int, count: int, tasks: int, log: Log) -> int:
    if not tasks:
        raise UserError(f"job_id: {job_id!r} has no task that is not done; it needs no workers")
    more = useful_workers(spec, alive + count, tasks, log) - alive
    if more < 1:
        raise UserError(
            f"workers: {alive:,} are alive and {tasks:,} tasks are not done; more would have "
            "nothing to do"
        )
    if more < count:
        log(f"{tasks:,} tasks are not done and {alive:,} workers are alive; adding {more:,}")
    return more


def _open_round(snapshot: Snapshot) -> RoundRow | None:
    """The latest round, if it is planned and open for work."""
    if not snapshot.rounds:
        return None
    last = snapshot.rounds[-1]
    planned = last.state is RoundState.OPEN and snapshot.job.rounds > last.number
    return last if planned else None


def _with(job_id: JobId, workers: Workers, *, changed: bool) -> ControlResult:
    return ControlResult(
        job_id, changed=changed, workers=workers.workers, slurm_job_ids=workers.slurm_job_ids
    )

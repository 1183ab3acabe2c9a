"""Control a running job: pause, resume, more workers, cancel.

Each verb may be interrupted at any point and called again, and records its caller (`actor`) in the
audit log. `log` gets a line per step. New workers follow the protocol of `workers.py`: an intent,
then one ``sbatch``.

    resume   the intent of workers that replace those that left  →  pause and breaker cleared
             →  sbatch. Interrupted before the second step, the job is still paused. After it,
             the next call that needs workers carries the intent out.

Requests: a few reads and writes of the job's rows; for workers also a snapshot, one
``squeue`` and one ``sacct``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import takewhile

from airflow_slurm_provider.coordinator import spec_store
from airflow_slurm_provider.coordinator.services import Log, Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from airflow_slurm_provider.coordinator.status.arrays import (
    arrays_of,
    ids_of,
    known_arrays,
    open_names,
    settled_state,
)
from airflow_slurm_provider.coordinator.status.progress import (
    check_running,
    latest,
    of_round,
    progress_of,
)
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot, read_snapshot
from airflow_slurm_provider.coordinator.submission.workers import (
    VerbResult,
    audit_workers,
    ensure_workers,
    submit_workers,
    useful_workers,
)
from airflow_slurm_provider.slurm.array_state import ArrayKey, ArrayState, named
from airflow_slurm_provider.units import format_count
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol.job_rows import JobRow, RoundRow, SubmissionRow
from slurm_worker.protocol.keys import JobId, RoundState, SubmitState


@dataclass(frozen=True, slots=True)
class ControlResult(VerbResult):
    """The result of `pause`, `resume` and `add_workers`."""

    changed: bool  #: this call has paused or resumed the job; false if it was so before
    paused: str = ""  #: who has paused the job; empty if it is not paused
    workers: int = 0  #: new workers that this call has submitted


def pause(services: Services, job_id: JobId, *, actor: str = "slurmctl") -> ControlResult:
    """Workers finish the tasks that they hold, and exit; a wait for the job continues.

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
    """Undo a pause, reset a breaker that a handler has tripped, and replace workers that left.

    A job that is neither paused nor stopped gets new workers if it has none left.

    Raises:
        UserError: if there is no such job, or Slurm refuses its options.
        ServiceError: if a service can't be reached, or if Slurm does not know yet which workers
            are left; calling again continues.
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
        log("the job is not planned completely; submit it again to continue")
        return ControlResult(job_id, changed=halted)
    job, spec = jobs.get(), spec_store.read_spec(services, job)
    tasks = progress_of(snapshot).unfinished_tasks
    workers = ensure_workers(services, spec, job, round_row, tasks, log)
    if workers.reattached:
        return ControlResult(job_id, changed=halted)
    audit_workers(services, job_id, workers, actor)
    ids = workers.slurm_job_ids
    return ControlResult(job_id, changed=halted, workers=workers.workers, slurm_job_ids=ids)


def add_workers(
    services: Services, job_id: JobId, count: int, *, log: Log, actor: str = "slurmctl"
) -> ControlResult:
    """Submit more workers for the job's latest round, in addition to those that run.

    At most as many as have something to do (`workers.useful_workers`). The new number is in the
    job's configuration from then on, also for later rounds. If an earlier submission was
    interrupted, that one is carried out instead of a new one. So two calls at the same moment make
    one submission.

    Raises:
        UserError: if more workers would have nothing to do, or Slurm refuses the options.
        ServiceError: if a service can't be reached; calling again continues.
    """
    if count < 1:
        raise UserError(f"workers: can't add {count} workers; add 1 or more")
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
    if last is None or not (last.refused or last.state is SubmitState.SUBMITTED):
        log("an earlier submission was interrupted; it is carried out now, and no more are added")
        workers = ensure_workers(services, spec, job, round_row, tasks, log)
    else:
        alive = _array_state(services, job_id, submissions, log).alive
        more = _useful_workers(spec, job_id, alive, count, tasks, log)
        raised = replace(job, config=spec_store.store_more_workers(services, job, alive + more))
        array_size = services.slurm.max_array_size()
        added = jobs.record_intent(
            round_row.number, last.next_number, more, array_size, requested=True
        )
        workers = submit_workers(services, spec, raised, round_row, added, log)
        # Only now: if Slurm refuses them, later submissions must not use this configuration.
        jobs.set_config(raised.config)
    audit_workers(services, job_id, workers, actor, "added workers")
    ids = workers.slurm_job_ids
    return ControlResult(job_id, changed=True, workers=workers.workers, slurm_job_ids=ids)


def cancel(services: Services, job_id: JobId, *, actor: str = "slurmctl") -> list[str]:
    """Cancel the job's pending and running arrays, and submissions that are about to happen.

    1. Withdraw the name of each submission without an id, so that no array of this name starts.
    2. Run ``scancel`` by name until Slurm has done it, and write the ids into the rows.
    3. Write an empty submission after the last one of each round. It takes the number that another
       process is about to intend, also of a process that is at an earlier round.

    Leases expire by themselves, so the job can be submitted again.

    Returns:
        The ids of the arrays that were pending or running.

    Raises:
        ServiceError: if the cluster can't be reached or arrays are left; calling again continues.
    """
    jobs = services.jobs(job_id)
    jobs.get()
    cancelled: list[str] = []
    barred: set[int] = set()
    rounds = range(1)
    while not barred.issuperset(rounds):
        submissions = jobs.submissions()
        cancelled += _cancel_all(services, job_id, submissions)
        rounds = range(1 + max((row.number for row in jobs.rounds()), default=0))
        for number in set(rounds) - barred:
            last = latest(of_round(submissions, number))
            # A process that intends workers at this moment takes this number too: one gets it.
            if jobs.block_submission(number, 1 if last is None else last.number + 1).empty:
                barred.add(number)
    jobs.audit(actor, "cancelled", {"arrays": ", ".join(cancelled)})
    return cancelled


def _cancel_all(services: Services, job_id: JobId, submissions: list[SubmissionRow]) -> list[str]:
    """Cancel the arrays that these submissions have or may have; return the ids of live ones."""
    names = [name for row in submissions for name in open_names(job_id, row)]
    ids = services.slurm.withdraw(names, job_id) if names else {}
    arrays = [key for row in submissions for key in known_arrays(job_id, row)]
    arrays += [ArrayKey("", name) for name in names]
    cancelled = services.slurm.cancel(arrays)
    for row in submissions:
        if row.state is SubmitState.INTENT:
            found = (ids.get(name, "") for name in open_names(job_id, row))
            services.jobs(job_id).record_submitted(row, list(takewhile(bool, found)))
    return ids_of(cancelled)


def _intend_replacements(
    services: Services, job: JobRow, snapshot: Snapshot, round_row: RoundRow, log: Log
) -> None:
    """Write the intent of new workers that replace those that have left, or are leaving."""
    jobs = services.jobs(job.job)
    submissions = of_round(jobs.submissions(), round_row.number)
    last, tasks = latest(submissions), progress_of(snapshot).unfinished_tasks
    if not tasks or last is None or not (last.refused or last.state is SubmitState.SUBMITTED):
        return
    spec = spec_store.read_spec(services, job)
    array = _array_state(services, job.job, submissions, log)
    # A running worker without a task has seen the pause, and exits. A worker with a task checks
    # for a pause only after the task: it continues. An element may have several workers.
    live = (row for row in snapshot.leased if row.lease_until_ms > snapshot.at_ms)
    holders = {row.owner.partition("-")[0] for row in live}
    staying = array.alive - array.running + min(array.running, len(holders))
    missing = useful_workers(spec, spec.workers, tasks, log) - staying
    if missing > 0:
        array_size = services.slurm.max_array_size()
        jobs.record_intent(round_row.number, last.next_number, missing, array_size, requested=True)


def _array_state(
    services: Services, job_id: JobId, submissions: list[SubmissionRow], log: Log
) -> ArrayState:
    arrays = arrays_of(services, job_id, submissions)
    array = settled_state(services, arrays, log)
    if array.unknown:
        raise ServiceError(
            "cluster: Slurm does not know yet whether workers of "
            f"{named(ids_of(arrays))} are left; try again"
        )
    return array


def _useful_workers(
    spec: JobSpec, job_id: JobId, alive: int, count: int, tasks: int, log: Log
) -> int:
    if not tasks:
        raise UserError(f"job_id: {job_id!r} has no unfinished tasks; it needs no workers")
    more = useful_workers(spec, alive + count, tasks, log) - alive
    unfinished = format_count(tasks, "unfinished task")
    if more < 1:
        raise UserError(
            f"workers: {alive:,} alive, with {unfinished}; more workers would have nothing to do"
        )
    if more < count:
        log(f"workers: {alive:,} alive, with {unfinished}; adding only {more:,} more")
    return more


def _open_round(snapshot: Snapshot) -> RoundRow | None:
    """The latest round, if it is planned and open."""
    last = snapshot.rounds[-1] if snapshot.rounds else None
    planned = last is not None and last.number < snapshot.job.rounds
    return last if last and planned and last.state is RoundState.OPEN else None

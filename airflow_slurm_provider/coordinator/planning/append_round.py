"""A round of items that are new in a job's input: `input.append`.

    compare    the input's items with those of all rounds that have added items
    create     the round's row, which says that it adds items; then its draft, task rows, open

The round is the next number after the rounds that were read. If another call has made a round of
that number meanwhile, this one does not start: it says so, and calling again continues. Items are
compared by key. One whose key is known is not run again. If it has changed, the log says so.

Requests: two passes over the input, a GET for each segment of the job's items, and those of
`planner.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from airflow_slurm_provider.coordinator.inputs.reader import Input
from airflow_slurm_provider.coordinator.planning import bundle_size, planner
from airflow_slurm_provider.coordinator.services import Log, Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from airflow_slurm_provider.units import format_count
from slurm_worker.errors import UserError
from slurm_worker.prefetch import prefetch
from slurm_worker.protocol.generations import open_round
from slurm_worker.protocol.job_rows import JobRow, RoundRow
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.keys import RoundState
from slurm_worker.protocol.slices import intact, unpack_segment


def append_new(services: Services, job: JobRow, spec: JobSpec, log: Log) -> RoundRow | None:
    """Plan and open a round of the input's new items; None if there are none.

    It also finishes such a round that an earlier call has left.

    Raises:
        UserError: if the input is wrong, or if another round is being planned.
    """
    jobs = services.jobs(job.job)
    rounds = jobs.rounds()
    last = rounds[-1]
    is_started = last.state is RoundState.PLANNING or job.rounds <= last.number
    if is_started and not last.appended:
        raise _busy(job)
    if is_started and last.draft:
        return _open(services, job, _planner(services, job, log).finish(last))
    before = rounds[:-1] if is_started else rounds
    found = Input(spec.input, services.bucket, services.engine)
    version = found.files.version()
    if version and version == _last_version(services, job, before) and not is_started:
        return None
    return _plan(services, job, spec, before, found, version, log, is_started=is_started)


def _plan(
    services: Services,
    job: JobRow,
    spec: JobSpec,
    before: list[RoundRow],
    found: Input,
    version: str,
    log: Log,
    *,
    is_started: bool,
) -> RoundRow | None:
    """The new round; `is_started` if an earlier call has created its row: it must be finished."""
    # Needs pyarrow; other commands should not wait for its import.
    from airflow_slurm_provider.coordinator.inputs.known_items import KnownItems
    from airflow_slurm_provider.coordinator.inputs.unique_keys import KeyCheck

    jobs, store = services.jobs(job.job), services.store(job.job)
    with KnownItems() as known, KeyCheck() as keys:
        known.compare(_items_of(store, before), keys.watch(found.items()))
        keys.check(found.places, "generate_key" if spec.input.generate_key else "key")
        if known.changed:
            log(
                f"input.append: {format_count(known.changed, 'item')} changed since this job was "
                "planned; they are not run again; submit them under another job_id"
            )
        if not known.new:
            log("input.append: there are no new items")
        if not known.new and not is_started:
            return None
        row = jobs.create_round(len(before), spec.input.source, version=version, appended=True)
        if not row.appended:
            raise _busy(job)
        bundle = bundle_size.bundle_of(spec)
        items = known.new_items(found.items())
        with planner.new_draft(store, row.number, items, bundle, log) as draft:
            draft.write_files(found.files.described())
            source, figures = spec.input.source, draft.totals.figures
            draft.complete(planner.DraftSummary(*figures, source=source, version=version))
            row = jobs.adopt_draft(row.number, draft.number)
            draft.discard_unless(row.draft)
            row = _planner(services, job, log).finish(row, draft)
    return _open(services, job, row)


def _open(services: Services, job: JobRow, row: RoundRow) -> RoundRow:
    open_round(services.jobs(job.job), services.tasks(job), row.number, list)
    return row


def _items_of(store: JobStore, rounds: list[RoundRow]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The items that these rounds have added to the job."""
    for row in rounds:
        if row.number and not row.appended:
            continue
        segments = store.segments(row.number, row.draft)
        with closing(prefetch(store.objects.get, segments, window=2)) as fetched:
            for key, data in fetched:
                with intact(key):
                    yield from unpack_segment(data or b"")


def _last_version(services: Services, job: JobRow, rounds: list[RoundRow]) -> str:
    """The version of the input that was planned last."""
    last = [row for row in rounds if not row.number or row.appended][-1]
    # Of two calls, one may have created the row, and the other one the plan.
    plan = planner.DraftSummary.read(services.store(job.job), last.number, last.draft)
    return plan.version if plan else last.version


def _planner(services: Services, job: JobRow, log: Log) -> planner.Planner:
    store, jobs = services.store(job.job), services.jobs(job.job)
    return planner.Planner(store, services.tasks(job), jobs, log)


def _busy(job: JobRow) -> UserError:
    return UserError(
        f"input.append: a retry of {job.job!r} is being planned; run slurmctl retry {job.job}, "
        "then submit again"
    )

"""Old faults of plans and rows: what a refused submit deletes, and a repair beside workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from airflow_slurm_provider.coordinator import spec_store
from airflow_slurm_provider.coordinator.inputs.reader import Input
from airflow_slurm_provider.coordinator.inputs.unique_keys import KeyCheck
from airflow_slurm_provider.coordinator.maintenance.repair import job as repair_job
from airflow_slurm_provider.coordinator.maintenance.repair.context import RepairContext
from airflow_slurm_provider.coordinator.maintenance.repair.tasks import TaskRepair
from airflow_slurm_provider.coordinator.planning import bundle_size, initial_round
from airflow_slurm_provider.coordinator.planning.initial_round import PlannedJob
from airflow_slurm_provider.coordinator.planning.planner import Planner
from airflow_slurm_provider.coordinator.services import Log, Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from slurm_worker.errors import UserError
from slurm_worker.protocol import keys
from slurm_worker.protocol.job_rows import RoundRow, SubmissionRow
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import shard_count
from slurm_worker.protocol.task_table import TaskTable
from tests.simulator.old_faults.fault import OldFault

# --- 8: a call that gives up deletes by name what others have written -----------------------------


def creates_before_reading(
    services: Services, spec: JobSpec, code_sha256: str, log: Log
) -> PlannedJob:
    """Create the job, then read its input; a refused input takes the job back."""
    sized, shards = (
        bundle_size.with_bundle(spec, services.bucket, log),
        shard_count(spec.max_workers),
    )
    digest = spec_store.store_spec(services, sized, shards, code_sha256)
    jobs, store = services.jobs(spec.id), services.store(spec.id)
    job = jobs.create(spec.identity(), digest, shards)
    first = jobs.create_round(0, spec.input.source)
    table = services.tasks(job)
    with KeyCheck() as unique:

        def check() -> dict[str, int]:
            unique.check(Input(spec.input, services.bucket).places)
            return {}

        items = unique.watch(Input(spec.input, services.bucket).items())
        bundle = bundle_size.bundle_of(sized)
        try:
            first = Planner(store, table, jobs, log).plan(first, items, bundle, check)
        except UserError:
            if not any(table.page(shard, "", 1) for shard in range(shards)):
                services.objects.delete_many(list(services.objects.list(store.paths.segments(0))))
                for row in list(services.rows.query(keys.job_pk(spec.id))):
                    services.rows.delete(str(row["pk"]), str(row["sk"]))
            raise
    return PlannedJob(job, sized, digest, first, planned_now=True)


@contextmanager
def _takes_back() -> Iterator[None]:
    # Segments had names that two planners shared.
    shared = mock.patch.object(keys, "new_draft", return_value=1)
    with shared, mock.patch.object(initial_round, "create_job", creates_before_reading):
        yield


_record_submitted = JobTable.record_submitted


def _forget(jobs: JobTable, submission: SubmissionRow) -> None:
    jobs.rows.delete(keys.job_pk(jobs.job), submission.sk)


def _ignore_refusal(
    jobs: JobTable, submission: SubmissionRow, slurm_job_ids: Sequence[str]
) -> SubmissionRow:
    found = _record_submitted(jobs, submission, slurm_job_ids)
    return found or replace(submission, slurm_job_ids=tuple(slurm_job_ids))


@contextmanager
def _forgets_intents() -> Iterator[None]:
    forgets = mock.patch.object(JobTable, "record_refusal", _forget)
    with forgets, mock.patch.object(JobTable, "record_submitted", _ignore_refusal):
        yield


# --- 10: a repair that lists markers before it reads rows -----------------------------------------


class _ListedEarlier:
    """A store whose list of markers was made before the rows were read."""

    def __init__(self, store: JobStore, round_no: int) -> None:
        self._objects = store.objects
        self._prefix = f"{store.paths.done_folder}{round_no:03}-"
        self._markers = list(store.objects.list(self._prefix))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)

    def list(self, prefix: str) -> Iterator[str]:
        """See `ports.ObjectStore.list`."""
        return iter(self._markers) if prefix == self._prefix else self._objects.list(prefix)

    def size(self, key: str) -> int | None:
        """See `ports.ObjectStore.size`; of markers, the list alone decided."""
        missing = key.startswith(self._prefix) and key not in self._markers
        return None if missing else self._objects.size(key)


class _MarkersFirst(TaskRepair):
    def __init__(
        self, context: RepairContext, table: TaskTable, round_row: RoundRow, *, strict: bool
    ) -> None:
        earlier = _ListedEarlier(context.store, round_row.number)
        store = JobStore(earlier, context.store.paths)
        super().__init__(replace(context, store=store), table, round_row, strict=strict)


def _markers_first() -> AbstractContextManager[object]:
    return mock.patch.object(repair_job, "TaskRepair", _MarkersFirst)


PLAN_FAULTS = (
    OldFault(
        "a refused submit takes back the job's rows and segments by name",
        "the plan of a right submit at the same time",
        "which another call has written|belongs to the plan",
        96,
        put_back=_takes_back,
    ),
    OldFault(
        "a refused array deletes the intent, and ids that are not recorded are ignored",
        "an array that Slurm had accepted from another call",
        "which another call has written|without an intent",
        8,
        put_back=_forgets_intents,
    ),
    OldFault(
        "a repair lists markers before it reads rows",
        "trust in healthy tasks, which it called broken",
        "repair calls a task broken",
        6,
        put_back=_markers_first,
    ),
)

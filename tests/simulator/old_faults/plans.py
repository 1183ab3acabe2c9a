"""Old faults of plans and rows: what a refused submit deletes, and a repair beside workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest import mock

from airflow_slurm_provider.coordinator.maintenance.repair import job as repair_job
from airflow_slurm_provider.coordinator.maintenance.repair.context import RepairContext
from airflow_slurm_provider.coordinator.maintenance.repair.tasks import TaskRepair
from slurm_worker.protocol.job_rows import RoundRow
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.task_table import TaskTable
from tests.simulator.old_faults.fault import OldFault

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
        "a repair lists markers before it reads rows",
        "trust in healthy tasks, which it called broken",
        "repair calls a task broken",
        15,
        put_back=_markers_first,
    ),
)

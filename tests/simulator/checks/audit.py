"""The audit log explains every lease that a worker took from another, and every task given up."""

from __future__ import annotations

from collections.abc import Mapping

from slurm_worker.protocol.keys import TaskId
from slurm_worker.protocol.ports import Row, int_of
from slurm_worker.protocol.task_history import TaskEvent
from slurm_worker.protocol.task_table import HISTORY_LIMIT
from slurm_worker.protocol.tasks import TaskRow
from tests.simulator.checks.rows import Violation
from tests.simulator.stores.rows import RECORDED
from tests.simulator.world import World


class Audit:
    """Sees every write to the table.

    Args:
        world: whose table it watches.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        #: Action, sort key of the task, and the attempt that lost its lease, of each write
        self._made: list[tuple[str, str, int]] = []
        world.rows.watchers.append(self._applied)

    def check(self, rows: Mapping[TaskId, TaskRow]) -> None:
        """Check each write that took a lease.

        Raises:
            Violation: naming a task that nothing explains.
        """
        events: set[tuple[str, str, int]] = set()
        for event in self._world.jobs.events():
            if event.action in RECORDED.values():
                task, attempt = str(event.detail["task"]), event.detail["attempt"]
                events.add((event.action, task.replace("-", "#"), int(str(attempt))))
        for made in self._made:
            if made not in events and made not in self._world.seen.unrecorded:
                raise Violation(f"the audit log does not have {made}")
        for event_ in events:
            if event_ not in self._made:
                raise Violation(f"the audit log has {event_}, which no write has done")
        for task, row in rows.items():
            stolen = sum(entry.event is TaskEvent.STOLEN for entry in row.history)
            if row.lost > stolen and len(row.history) < HISTORY_LIMIT:
                raise Violation(f"{task} has lost {row.lost} leases, its history has {stolen}")

    def _applied(self, name: str, before: Row, after: Row) -> None:
        if name in RECORDED:
            self._made.append((RECORDED[name], str(after["sk"]), int_of(before, "attempt")))

"""A broken promise; and what must hold of the rows of any run."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from slurm_worker.protocol.job_store import Marker
from slurm_worker.protocol.keys import (
    TaskId,
    TaskState,
)
from slurm_worker.protocol.tasks import TaskRow
from tests.simulator.engine.seen import Seen
from tests.simulator.stores.rows import WatchedRows


class Violation(Exception):
    """A promise was broken."""


def check_rules(rows: WatchedRows) -> None:
    """No write has broken a rule of its row.

    Raises:
        Violation: naming the first.
    """
    if rows.broken:
        raise Violation(rows.broken[0])


def check_decisions(seen: Seen) -> None:
    """Each marker has had one content, and the attempts of each task rise.

    Raises:
        Violation: naming the marker or the task.
    """
    for key, bodies in seen.markers.items():
        if len(bodies) > 1:
            raise Violation(f"{key} had {len(bodies)} different contents")
    for task, attempts in seen.attempts.items():
        if any(later <= earlier for earlier, later in pairwise(attempts)):
            raise Violation(f"attempts of {task} do not rise: {attempts}")


def check_ended(rows: Mapping[TaskId, TaskRow], markers: Mapping[TaskId, Marker]) -> None:
    """Each task has ended, and what is done has the marker that its row names.

    Raises:
        Violation: naming the task.
    """
    for task, row in rows.items():
        if not row.state.terminal:
            raise Violation(f"{task} is {row.state.value} at the end")
        if row.state is TaskState.DONE and task not in markers:
            raise Violation(f"{task} is done without a marker")
        if row.state is TaskState.DONE and markers[task].attempt != row.winner:
            raise Violation(f"{task}: the row and the marker name different winners")

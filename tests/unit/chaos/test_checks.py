"""The checks after chaos find what they are there to find."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from slurm_worker.protocol.ports import Row
from slurm_worker.protocol.task_history import HistoryEntry, TaskEvent
from slurm_worker.protocol.task_table import HISTORY_LIMIT
from tests.chaos.checks import disagreements, unexplained
from tests.unit.world import World, numbered

RELEASED = HistoryEntry(1, TaskEvent.RELEASED, "w1").to_row()
STOLEN = HistoryEntry(2, TaskEvent.STOLEN, "w3", "w2").to_row()
SOUND: Row = {
    "sk": "000#00000001",
    "state": "done",
    "attempt": 3,
    "winner": 3,
    "lost": 1,
    "segment": 0,
    "offset": 0,
    "length": 10,
    "items": 5,
    "sha256": "x",
    "history": [RELEASED, STOLEN],
}


def test_a_row_whose_attempts_all_have_their_reason_is_sound() -> None:
    assert unexplained(SOUND) == []


@pytest.mark.parametrize(
    "change",
    [
        {"history": [STOLEN]},
        {"history": [RELEASED, RELEASED]},
        {"winner": 4},
        {"error": "x" * 1024},
    ],
)
def test_a_row_that_hides_something_is_told_of(change: Row) -> None:
    assert unexplained({**SOUND, **change}) != []


def test_a_task_that_a_retry_put_back_has_an_entry_beside_those_of_its_attempts() -> None:
    failed = HistoryEntry(1, TaskEvent.FAILED, "w1", error_class="node_failure", attempt=1).to_row()
    reopened = HistoryEntry(2, TaskEvent.REOPENED, round_no=1).to_row()
    row: Row = {**SOUND, "attempt": 2, "winner": 2, "lost": 0, "history": [failed, reopened]}
    assert unexplained(row) == []
    assert unexplained({**row, "attempt": 3}) != []


def test_a_full_history_may_leave_the_last_attempts_out() -> None:
    full: Row = {"history": [STOLEN] * HISTORY_LIMIT, "lost": 9, "attempt": 10}
    assert unexplained({**SOUND, **full}) == []


def test_a_row_that_disagrees_with_its_marker_is_told_of(tmp_path: Path) -> None:
    world = World(tmp_path, bundle=5)
    world.plan(numbered(10))
    world.worker().run()
    first, second = world.task_rows()
    assert disagreements([first, second], world.markers()) == []
    assert len(disagreements([first], world.markers())) == 1
    assert len(disagreements([first, replace(second, winner=2)], world.markers())) == 1

"""The history of a task's row: fields, and the text that earlier releases wrote."""

from __future__ import annotations

import pytest

from slurm_worker.errors import ErrorClass
from slurm_worker.protocol.ports import Row
from slurm_worker.protocol.task_history import (
    Crash,
    HistoryEntry,
    TaskEvent,
    poison_items,
    read_history,
)
from slurm_worker.protocol.tasks import TaskRow

AT = 1_700_000_000_000
W1, W2 = "123_4-r0-0123456789ab", "123_5-r1-ba9876543210"


@pytest.mark.parametrize(
    "entry",
    [
        HistoryEntry(AT, TaskEvent.STOLEN, W2, W1),
        HistoryEntry(AT, TaskEvent.QUARANTINED, W2, W1),
        HistoryEntry(AT, TaskEvent.RELEASED, W1),
        HistoryEntry(AT, TaskEvent.SERVICE_FAILED, W1),
        HistoryEntry(AT, TaskEvent.FAILED, W1, error_class="network", attempt=3),
        HistoryEntry(AT, TaskEvent.CRASHED, W1, error_class="timeout", position=0),
        HistoryEntry(AT, TaskEvent.REOPENED, round_no=2),
    ],
)
def test_an_entry_is_read_as_it_was_written_and_described(entry: HistoryEntry) -> None:
    assert read_history({"history": [entry.to_row()]}) == (entry,)
    assert entry.worker in entry.describe()


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        (f"stolen by {W2} from {W1}", HistoryEntry(AT, TaskEvent.STOLEN, W2, W1)),
        (f"quarantined by {W2}", HistoryEntry(AT, TaskEvent.QUARANTINED, W2, W1)),
        (f"released by {W1}", HistoryEntry(AT, TaskEvent.RELEASED, W1)),
        (
            f"a service failed; given back by {W1}",
            HistoryEntry(AT, TaskEvent.SERVICE_FAILED, W1),
        ),
        (
            f"network a3 {W1}",
            HistoryEntry(AT, TaskEvent.FAILED, W1, error_class="network", attempt=3),
        ),
        (
            "crashed: 0 timeout",
            HistoryEntry(AT, TaskEvent.CRASHED, error_class="timeout", position=0),
        ),
        (
            "crashed: - out_of_memory",
            HistoryEntry(AT, TaskEvent.CRASHED, error_class="out_of_memory"),
        ),
        ("reopened: retry round 2", HistoryEntry(AT, TaskEvent.REOPENED, round_no=2)),
    ],
)
def test_an_entry_of_an_earlier_release_is_read(text: str, entry: HistoryEntry) -> None:
    row: Row = {
        "pk": "JOB#j#TASK#000",
        "sk": "000#00000001",
        "state": "quarantined",
        "segment": 0,
        "offset": 0,
        "length": 10,
        "items": 5,
        "sha256": "x",
        "error": f"the lease was lost 3 times, last by {W1}; worker 123_4 (start 1) on n1",
        "history": [f"{AT} {text}"],
        "crashes": ["3 worker_crash", "- timeout"],
    }
    task = TaskRow.from_row(row)
    assert task.history == (entry,)
    assert task.crashes == (Crash(ErrorClass.WORKER_CRASH, 3), Crash(ErrorClass.TIMEOUT, None))


def test_an_item_on_which_two_processes_died_or_one_hung_is_not_run_again() -> None:
    died, hung = ErrorClass.WORKER_CRASH, ErrorClass.TIMEOUT
    assert poison_items([Crash(died, 3), Crash(hung, 5), Crash(died, None)]) == {5: hung}
    assert poison_items([Crash(died, 3), Crash(died, 4), Crash(ErrorClass.OUT_OF_MEMORY, 3)]) == {
        3: ErrorClass.OUT_OF_MEMORY
    }


def test_an_event_of_a_later_release_can_be_read() -> None:
    (entry,) = read_history({"history": [{"at": 5, "event": "paused", "by": "w1"}]})
    assert (entry.event, entry.at_ms, entry.worker) == (TaskEvent.OTHER, 5, "w1")
    assert "does not know" in entry.describe()

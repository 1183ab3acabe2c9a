"""Why attempts at a task ended before the task: the entries of its row, and deaths of processes.

A row holds fields. `HistoryEntry.describe` makes the sentence that a person reads.

A process that dies of its handler (a segmentation fault, the kernel's out-of-memory killer, a
hang that its supervisor ends) leaves a `Crash` on the task's row: the item that it ran. An
item on which enough processes have died is not run again; it is recorded as failed, and the
rest of its task is processed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

from slurm_worker.errors import ErrorClass
from slurm_worker.protocol.ports import Row, Value, str_of
from slurm_worker.protocol.row_fields import RowFields

#: A task whose processes died this often is not run again.
MOST_CRASHES = 20


class TaskEvent(str, Enum):
    """What ended an attempt, or brought a task back."""

    STOLEN = "stolen"  #: the lease expired, and another worker took it
    QUARANTINED = "quarantined"  #: the lease expired once too often: the task was given up
    FAILED = "failed"  #: the attempt failed with an error class
    RELEASED = "released"  #: the worker gave the lease back
    SERVICE_FAILED = "service_failed"  #: as RELEASED, because a service failed
    CRASHED = "crashed"  #: the worker's process died
    REOPENED = "reopened"  #: a retry's round put the task back
    OTHER = "other"  #: an event of a later release, which this one does not know

    @classmethod
    def _missing_(cls, _value: object) -> TaskEvent:
        return cls.OTHER


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One entry of a task's history."""

    at_ms: int  #: when, in milliseconds since the epoch, by AWS's clock
    event: TaskEvent  #: what happened
    worker: str = ""  #: the worker that wrote it, or whose process died
    previous: str = ""  #: the worker that lost the lease
    error_class: str = ""  #: of an attempt that failed, or a process that died
    attempt: int = 0  #: the attempt that failed
    #: The item that the process ran, from 0; None where it ran several, or none.
    position: int | None = None
    round_no: int = 0  #: the retry's round that put the task back

    def describe(self) -> str:
        """What happened, as a person reads it."""
        item = "" if self.position is None else f" on item {self.position}"
        return {
            TaskEvent.STOLEN: f"{self.worker} took the expired lease of {self.previous}",
            TaskEvent.QUARANTINED: f"{self.worker} gave the task up; last lease: {self.previous}",
            TaskEvent.FAILED: f"attempt {self.attempt} of {self.worker}: {self.error_class}",
            TaskEvent.RELEASED: f"released by {self.worker}",
            TaskEvent.SERVICE_FAILED: f"released by {self.worker}: a service failed",
            TaskEvent.CRASHED: f"the process of {self.worker or 'a worker'} died{item}: "
            f"{self.error_class}",
            TaskEvent.REOPENED: f"put back for retry round {self.round_no}",
            TaskEvent.OTHER: "an event that this release does not know",
        }[self.event]

    def to_row(self) -> dict[str, Value]:
        """As the row holds it: the fields that are set, under short names."""
        return _ENTRY.write(self)


_ENTRY = RowFields(
    HistoryEntry,
    names={
        "at_ms": "at",
        "worker": "by",
        "previous": "from",
        "error_class": "class",
        "position": "item",
        "round_no": "round",
    },
    read={"event": TaskEvent},
)


@dataclass(frozen=True, slots=True)
class Crash:
    """One death of a process."""

    error_class: ErrorClass  #: what it died of
    position: int | None  #: the item that it ran; None where it ran several, or none

    def describe(self) -> str:
        """What a person reads."""
        where = "no single item" if self.position is None else f"item {self.position}"
        return f"{where}: {self.error_class.value}"

    def to_text(self) -> str:
        """As the row holds it: ``position class``, or ``- class``.

        Two fields in a fixed form. It stays, as older workers of the same job read it.
        """
        return f"{'-' if self.position is None else self.position} {self.error_class.value}"

    @classmethod
    def from_text(cls, text: str) -> Crash:
        """Read what `to_text` wrote."""
        position, _, error_class = text.partition(" ")
        return cls(ErrorClass(error_class), None if position == "-" else int(position))


def poison_items(crashes: Iterable[Crash]) -> dict[int, ErrorClass]:
    """The items not to be run again, with the class that they fail with."""
    deaths: Counter[int] = Counter()
    found: dict[int, ErrorClass] = {}
    for crash in crashes:
        if crash.position is not None:
            deaths[crash.position] += 1
            # A hang is certain; a death may have had another cause, so it takes two.
            if deaths[crash.position] >= (1 if crash.error_class is ErrorClass.TIMEOUT else 2):
                found[crash.position] = crash.error_class
    return found


def read_crashes(row: Row) -> tuple[Crash, ...]:
    """The deaths of processes that a task's row holds."""
    return tuple(map(Crash.from_text, cast("list[str]", row.get("crashes") or [])))


def read_history(row: Row) -> tuple[HistoryEntry, ...]:
    """The history that a task's row holds, in whichever form."""
    found = cast("list[Row | str]", row.get("history") or [])
    return tuple(
        _from_text(entry, row) if isinstance(entry, str) else _ENTRY.read(entry) for entry in found
    )


#: Releases up to 0.1 wrote entries as text, cut off at 80 characters.
_TEXTS = (
    (TaskEvent.STOLEN, re.compile(r"stolen by (?P<worker>\S+) from (?P<previous>\S+)")),
    (TaskEvent.QUARANTINED, re.compile(r"quarantined by (?P<worker>\S+)")),
    (TaskEvent.RELEASED, re.compile(r"released by (?P<worker>\S+)")),
    (TaskEvent.SERVICE_FAILED, re.compile(r"a service failed; given back by (?P<worker>\S+)")),
    (TaskEvent.CRASHED, re.compile(r"crashed: (?:-|(?P<position>\d+)) (?P<error_class>\w+)")),
    (TaskEvent.REOPENED, re.compile(r"reopened: retry round (?P<round_no>\d+)")),
    (TaskEvent.FAILED, re.compile(r"(?P<error_class>\w+) a(?P<attempt>\d+) (?P<worker>\S+)")),
)
_NUMBERS = ("position", "attempt", "round_no")
_LAST_HOLDER = re.compile(r"last by ([^\s;]+)")


def _from_text(text: str, row: Row) -> HistoryEntry:
    """Read an entry of an earlier release; one of no known form is a release."""
    at, _, what = text.partition(" ")
    at_ms = int(at) if at.isdecimal() else 0
    for event, pattern in _TEXTS:
        if match := pattern.match(what):
            found: dict[str, Any] = {
                name: int(value) if name in _NUMBERS else value
                for name, value in match.groupdict().items()
                if value is not None
            }
            if event is TaskEvent.QUARANTINED and (
                holder := _LAST_HOLDER.search(str_of(row, "error"))
            ):
                # The entry named only the worker that wrote it.
                found["previous"] = holder.group(1)
            return HistoryEntry(at_ms, event, **found)
    return HistoryEntry(at_ms, TaskEvent.RELEASED)

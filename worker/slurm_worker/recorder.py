"""The flight recorder: what a worker process is doing, readable after its death.

A small file mapped into memory: a write costs a fraction of a microsecond, and what was
written outlives the process (not the machine). The supervisor reads it to tell which
item a process died on, and whether it still moves.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

#: position or -1, items in flight, time of the last change, attempt, task, owner
_FORMAT = struct.Struct("<qqdq32s96s")
_ITEM = struct.Struct("<qqd")
#: after it: seconds that one item may take, seconds without any progress
_LIMITS = struct.Struct("<dd")
_SIZE = _FORMAT.size + _LIMITS.size
_NOBODY = -1


@dataclass(frozen=True, slots=True)
class Record:
    """What the process was doing.

    Args:
        task: empty between tasks.
        attempt: of the task.
        owner: who holds the lease.
        position: the only item being run; None where there are several, or none.
        running: items being run.
        since: when that last changed, in seconds on the boot-time clock.
        item_limit_s: an item that runs longer hangs; 0 for no limit.
        stall_limit_s: a process in which nothing changes for longer hangs; 0 for no limit.
    """

    task: str
    attempt: int
    owner: str
    position: int | None
    running: int
    since: float
    item_limit_s: float
    stall_limit_s: float

    def hangs(self, now: float) -> bool:
        """Whether the process does not go on, `now` on the boot-time clock."""
        if not self.task or not self.running:
            return False
        limits = [self.stall_limit_s] + ([self.item_limit_s] if self.position is not None else [])
        return any(limit and now - self.since > limit for limit in limits)


class Recorder:
    """Writes and reads the record.

    Args:
        path: the file; made if absent. Without one nothing outlives the process.
    """

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            self._memory = mmap.mmap(-1, _SIZE)
        else:
            if not path.exists():
                path.write_bytes(bytes(_SIZE))
            with path.open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), _SIZE)
        #: (position, number of items, now): what `item` and `several` call, for who can't
        #: spare a call per item.
        self.items: Callable[[int, int, float], None] = partial(_ITEM.pack_into, self._memory, 0)

    def task(self, task: str, attempt: int, owner: str) -> None:
        """A task begins."""
        _FORMAT.pack_into(self._memory, 0, _NOBODY, 0, 0.0, attempt, task.encode(), owner.encode())

    def item(self, position: int, now: float) -> None:
        """The process runs this item and no other, `now` on the boot-time clock."""
        self.items(position, 1, now)

    def several(self, count: int, now: float) -> None:
        """The process runs several items."""
        self.items(_NOBODY, count, now)

    def limits(self, item_s: float, stall_s: float) -> None:
        """Say when the process must be taken to hang."""
        _LIMITS.pack_into(self._memory, _FORMAT.size, item_s, stall_s)

    def idle(self) -> None:
        """The task's items are done."""
        self.task("", 0, "")

    def read(self) -> Record:
        """What was written last."""
        position, running, since, attempt, task, owner = _FORMAT.unpack_from(self._memory, 0)
        return Record(
            task.rstrip(b"\0").decode(),
            attempt,
            owner.rstrip(b"\0").decode(),
            None if position == _NOBODY else position,
            running,
            since,
            *_LIMITS.unpack_from(self._memory, _FORMAT.size),
        )

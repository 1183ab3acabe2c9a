"""The flight recorder: what a worker process is doing, readable after its death.

A small file mapped into memory: a write costs a fraction of a microsecond, and what was
written outlives the process (not the machine). The supervisor reads from it which item a
process died on, which leases it had, and whether it still makes progress.

A write is not atomic: `struct` clears the bytes, then fills them in their order. A reader during
a write, or after a death in a write, finds zeros; the time is written last.
"""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

#: position or -1, items in flight, time of the last change, attempt, task
_FORMAT = struct.Struct("<qqdq32s")
_ITEM = struct.Struct("<qqd")
#: after it: seconds that one item may take, seconds without any progress, owner of the leases
_PROCESS = struct.Struct("<dd96s")
_LIMITS = struct.Struct("<dd")
_SINCE = struct.Struct("<d")
_SINCE_AT = struct.calcsize("<qq")
_OWNER = struct.Struct("<96s")
#: after it: attempt and task of each lease; one runs, one is committed, one comes next
_LEASE = struct.Struct("<q32s")
_LEASES_AT = _FORMAT.size + _PROCESS.size
_SIZE = _LEASES_AT + 4 * _LEASE.size
_FREE = bytes(_LEASE.size)
#: In place of a position: several items run, or none.
SEVERAL = -1
_MOST_BETWEEN_READS_S = 1.0


@dataclass(frozen=True, slots=True)
class Record:
    """What the process was doing."""

    task: str  #: empty between tasks
    attempt: int  #: of the task
    owner: str  #: who holds the leases
    #: The only item that runs; None where several or none run, or where the record is half written
    position: int | None
    running: int  #: items that run
    since: float  #: when that last changed, in seconds on the boot-time clock
    item_limit_s: float  #: an item that runs longer hangs; 0 for no limit
    stall_limit_s: float  #: a process in which nothing changes for longer hangs; 0 for no limit
    #: (task, attempt) of each lease that the process has, with that of the task
    leases: tuple[tuple[str, int], ...]


class HangDetector:
    """Decides from reads of a process's record whether the process hangs.

    It uses no time that the process wrote, only for how long reads have found the same: a read may
    fall into a write. Between two reads at most a second counts, so that a job that Slurm
    suspended is not taken to hang when it resumes.
    """

    def __init__(self) -> None:
        self._seen: tuple[object, ...] = ()
        self._still_s = 0.0
        self._read_at = 0.0

    def hangs(self, record: Record, now: float) -> bool:
        """Whether the process has made no progress for longer than it may; `now` in seconds."""
        seen = (record.task, record.attempt, record.position, record.running, record.since)
        if seen == self._seen:
            self._still_s += min(now - self._read_at, _MOST_BETWEEN_READS_S)
        else:
            self._seen, self._still_s = seen, 0.0
        self._read_at = now
        if not record.task or not record.running:
            return False
        limits = [record.stall_limit_s]
        if record.position is not None:
            limits.append(record.item_limit_s)
        return any(limit and self._still_s > limit for limit in limits)


class Recorder:
    """Writes and reads the record; without a `path`, nothing outlives the process."""

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            self._memory = mmap.mmap(-1, _SIZE)
        else:
            if not path.exists():
                path.write_bytes(bytes(_SIZE))
            with path.open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), _SIZE)
        #: Records which item runs, or `SEVERAL`, how many run, and the time on the boot-time clock.
        #: Not a method: one more call for each item would cost too much.
        self.items: Callable[[int, int, float], None] = partial(_ITEM.pack_into, self._memory, 0)
        self._lock = threading.Lock()
        #: When something here last waited on purpose, in seconds on the boot-time clock.
        self.waited = 0.0

    def owner(self, owner: str) -> None:
        """Record the owner of the leases."""
        _OWNER.pack_into(self._memory, _FORMAT.size + _LIMITS.size, owner.encode())

    def hold(self, task: str, attempt: int) -> None:
        """The process has this lease; one without a free place has to run out."""
        self._replace(_FREE, _LEASE.pack(attempt, task.encode()))

    def drop(self, task: str, attempt: int) -> None:
        """The process no longer has this lease, or is about to give it back."""
        self._replace(_LEASE.pack(attempt, task.encode()), _FREE)

    def task(self, task: str = "", attempt: int = 0) -> None:
        """A task begins; without one, the items of the last have run."""
        _FORMAT.pack_into(self._memory, 0, SEVERAL, 0, 0.0, attempt, task.encode())

    def waits(self, now: float) -> None:
        """Something waits on purpose, for a token or before another try: that is not a hang."""
        self.waited = now
        _SINCE.pack_into(self._memory, _SINCE_AT, now)

    def limits(self, item_s: float, stall_s: float) -> None:
        """Record after how long the process must be taken to hang."""
        _LIMITS.pack_into(self._memory, _FORMAT.size, item_s, stall_s)

    def read(self) -> Record:
        """What was written last."""
        position, running, since, attempt, task = _FORMAT.unpack_from(self._memory, 0)
        item_s, stall_s, owner = _PROCESS.unpack_from(self._memory, _FORMAT.size)
        only = None if position == SEVERAL or not since else position
        found = _LEASE.iter_unpack(self._memory[_LEASES_AT:])
        leases = tuple((_text(of), number) for number, of in found if number)
        return Record(
            _text(task), attempt, _text(owner), only, running, since, item_s, stall_s, leases
        )

    def _replace(self, old: bytes, new: bytes) -> None:
        with self._lock:
            for at in range(_LEASES_AT, _SIZE, _LEASE.size):
                if self._memory[at : at + _LEASE.size] == old:
                    self._memory[at : at + _LEASE.size] = new
                    return


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode()

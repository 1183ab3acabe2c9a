"""Where a worker looks for its next task.

Home shard first (so that workers spread without talking to each other), then the others
in random order, then leases that have run out. Within a page a claimable row is picked
at random, so that workers of one shard seldom meet. A cursor per shard passes over
what is finished; it goes back to the start when a new round opens, because a retry may
put old tasks back.

Requests: one consistent Query of 20 rows (3 read units) for a claim in the usual case.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from slurm_worker.keys import TaskState
from slurm_worker.ports import Clock, Value
from slurm_worker.table import Candidate, Claimed, GivenUp, Lease, TaskTable
from slurm_worker.trail import Note, no_note

_FIRST_PAGE = 20
_PAGE_GROWTH = 4
_LARGEST_PAGE = 250
_CLAIM_TRIES = 3
#: With nothing to lease in so many shards, there is next to nothing in the others. Looking
#: at all of them would be most of what a job with many workers reads at its end.
_MOST_SHARDS = 8


@dataclass(frozen=True, slots=True)
class Found:
    """A task to work on."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing now, but others hold leases that may run out, or a backoff is under way.

    Args:
        leased: tasks that others hold: about so many, after a sample of the shards.
        later: tasks that may be leased after their backoff; likewise.
    """

    leased: int
    later: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Every task is in an end state."""


class TaskFinder:
    """Finds and leases tasks for one worker.

    Args:
        table: the job's task rows.
        owner: the worker's identity, new with each start of the process.
        rng: source of the random picks.
        note: told of leases that are taken from others, and of tasks given up for it.
    """

    def __init__(
        self,
        table: TaskTable,
        owner: str,
        clock: Clock,
        rng: random.Random,
        note: Note = no_note,
    ) -> None:
        self._table = table
        self._owner = owner
        self._clock = clock
        self._rng = rng
        self._note = note
        #: Where the last task was found; at first a shard that the worker's name decides.
        self._home = zlib.crc32(owner.encode()) % table.shards
        self._cursors: dict[int, str] = {}
        #: Where the next ready row is likely to be; leases past their end are before it.
        self._hints: dict[int, str] = {}
        #: Shards whose every row is in an end state; only a new round changes that.
        self._used_up: set[int] = set()
        #: Leases past their end: row version and when we first saw it, on the boot-time clock.
        self._expired: dict[str, tuple[str, float]] = {}
        self._rounds = 0

    def new_rounds(self, rounds: int) -> None:
        """Look at every row again if a round was opened since."""
        if rounds != self._rounds:
            self._rounds = rounds
            self._cursors.clear()
            self._hints.clear()
            self._used_up.clear()

    def next(self) -> Found | Waiting | Finished:
        """Lease a task, if there is one."""
        looked = leased = later = 0
        for shard in self._shards():
            if shard in self._used_up:
                continue
            result = self._search(shard)
            if isinstance(result, Lease):
                self._home = shard
                return Found(result)
            if not result:
                self._used_up.add(shard)
                continue
            states = [row.state for row in result]
            leased += states.count(TaskState.LEASED)
            later += states.count(TaskState.READY)
            looked += 1
            if looked == _MOST_SHARDS:
                break
        if not looked:
            return Finished()
        in_all = (self._table.shards - len(self._used_up)) / looked
        return Waiting(round(leased * in_all), round(later * in_all))

    def _shards(self) -> Iterator[int]:
        """Home first; the others are put in an order only when it has nothing."""
        home = self._home
        yield home
        others = [shard for shard in range(self._table.shards) if shard != home]
        self._rng.shuffle(others)
        yield from others

    def _search(self, shard: int) -> Lease | list[Candidate]:
        """A lease from this shard, or its unfinished rows."""
        lease, _ = self._read_on(shard, self._hints.get(shard, ""), steal=False)
        if lease is not None:
            return lease
        lease, unfinished = self._read_on(shard, self._cursors.get(shard, ""), steal=True)
        return lease or unfinished

    def _read_on(
        self, shard: int, after: str, *, steal: bool
    ) -> tuple[Lease | None, list[Candidate]]:
        """Page through a shard until a lease is had; else every unfinished row past `after`."""
        if not steal and not after:
            return None, []
        size = _FIRST_PAGE
        unfinished: list[Candidate] = []
        while True:
            rows = self._table.candidates(shard, after, size)
            open_rows = [row for row in rows if not row.state.terminal]
            if steal and not unfinished:
                self._advance(shard, rows)
            lease = self._claim_one(open_rows) or (self._steal_one(open_rows) if steal else None)
            if lease is not None:
                self._note_ready(shard, after, rows)
                return lease, []
            unfinished += open_rows
            if len(rows) < size:
                return None, unfinished
            after = rows[-1].sk
            size = min(size * _PAGE_GROWTH, _LARGEST_PAGE)

    def _note_ready(self, shard: int, after: str, rows: list[Candidate]) -> None:
        """Remember where the first ready row stood: what is before it is others' by now."""
        before = takewhile(lambda row: row.state is not TaskState.READY, rows)
        self._hints[shard] = max((row.sk for row in before), default=after)

    def _advance(self, shard: int, rows: list[Candidate]) -> None:
        for row in rows:
            if not row.state.terminal:
                return
            self._cursors[shard] = row.sk

    def _claim_one(self, rows: list[Candidate]) -> Lease | None:
        now_ms = int(self._clock.now() * 1000)
        ready = [
            row for row in rows if row.state is TaskState.READY and row.not_before_ms <= now_ms
        ]
        for row in self._rng.sample(ready, min(_CLAIM_TRIES, len(ready))):
            result = self._table.claim(row.read(), self._owner)
            if isinstance(result, Claimed):
                return result.lease
        return None

    def _steal_one(self, candidates: list[Candidate]) -> Lease | None:
        dead_ms = int((self._clock.now() - self._table.lease.margin_s) * 1000)
        for each in candidates:
            if each.state is not TaskState.LEASED or (row := each.read()).lease_until_ms >= dead_ms:
                self._expired.pop(each.sk, None)
                continue
            version, since = self._expired.get(row.sk, ("", 0.0))
            if version != row.version:
                # First sight: a live holder would change the version within a heartbeat.
                self._expired[row.sk] = (row.version, self._clock.boot_time())
            elif self._clock.boot_time() - since >= self._table.lease.heartbeat_s:
                del self._expired[row.sk]
                result = self._table.steal(row, self._owner)
                lost: dict[str, Value] = {
                    "task": row.task,
                    "attempt": row.attempt,
                    "lost": row.lost + 1,
                }
                if isinstance(result, GivenUp):
                    self._note("quarantined", {**lost, "from": row.owner})
                if isinstance(result, Claimed):
                    self._note("lease_stolen", {**lost, "from": row.owner})
                    return result.lease
        return None

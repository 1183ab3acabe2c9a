"""Where a worker looks for its next task.

Its home shard first (so that workers spread without messages between them), then the others
in random order, then leases that have run out. One of the first 20 claimable rows is picked
at random, so that workers of one shard seldom collide.

    shard   done done leased done leased done leased ready ready ready …
                     ▲ cursor                        ▲ hint

A claim usually reads on from the hint. One in four begins at the cursor instead; every row before
the cursor is in an end state. Such a claim meets the leases that have run out, so that these are
taken over while there is other work, and it moves the cursor on. Workers share their cursors
(`shard_progress.py`), so that one that starts late need not read the rows that are done.
They also share which shards have nothing ready, and search the others first. A new round, or a
repair, moves the cursors back to the start.

Requests: one consistent Query of 20 rows (3 read units) for a claim in the usual case, two
or three queries for one in four. Cursors and totals (`protocol/shard_progress.py`) cost more
requests, for many rows together.
"""

from __future__ import annotations

import random
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile

from slurm_worker.errors import ServiceError
from slurm_worker.protocol.job_table import RecordEvent, ignore_event
from slurm_worker.protocol.keys import TaskState, parse_task_id, shard_of
from slurm_worker.protocol.ports import Clock, Value
from slurm_worker.protocol.shard_progress import ROWS_PER_CURSOR, ShardCursors, Stage
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import Candidate, Claimed, GivenUp, Lease, TaskRow

_FIRST_PAGE = 20
_PAGE_GROWTH = 4
_LARGEST_PAGE = 250
_CLAIM_TRIES = 3
#: One claim in so many begins at the cursor.
_SCAN_EVERY = 4
#: With nothing to lease in so many shards, there is next to nothing in the others. A search of
#: all of them would be most of what a job with many workers reads at its end. A job with few
#: shards has few workers: they search all, and share no shard's end.
_MOST_SHARDS, _FEW_SHARDS = 4, 8
#: So many leases, where nothing is ready, are enough to estimate how many there are in all.
_SAMPLE = 32


@dataclass(frozen=True, slots=True)
class Found:
    """A task to work on."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing now, but other workers hold leases that may run out, or a backoff is running.

    Both numbers of tasks are estimated from a sample of the shards.
    """

    leased: int  #: by other workers
    later: int  #: may be leased after their backoff


@dataclass(frozen=True, slots=True)
class Finished:
    """Every task is in an end state."""


class TaskFinder:
    """Finds and leases tasks for one worker.

    `record_event` gets an event for each lease taken from another worker, and each task given up.
    `moved` is called for each shared cursor that this worker moves, with the shard and the sort
    keys before and after. `unanswered` is called for each row whose lease we may have got without
    an answer, with the row as it was and the id of the request.
    """

    def __init__(
        self,
        table: TaskTable,
        owner: str,
        clock: Clock,
        rng: random.Random,
        record_event: RecordEvent = ignore_event,
        moved: Callable[[int, str, str], None] = lambda _shard, _before, _after: None,
        unanswered: Callable[[TaskRow, str], None] = lambda _row, _request: None,
    ) -> None:
        self._table, self._owner, self._clock, self._rng = table, owner, clock, rng
        self._record_event, self._moved, self._unanswered = record_event, moved, unanswered
        #: Where the last task was found; at first a shard that the worker's name decides.
        self._home = zlib.crc32(owner.encode()) % table.shards
        self._shared_cursors = ShardCursors(table.rows, table.job, table.shards)
        self._cursors: dict[int, str] = {}
        #: Rows by which a cursor was moved since it was shared.
        self._advanced: Counter[int] = Counter()
        #: Where the next ready row is likely to be; leases past their end are before it.
        self._hints: dict[int, str] = {}
        #: What is left of each shard, as far as we have seen or read from other workers.
        self._stages = dict.fromkeys(range(table.shards), Stage.READY)
        #: Leases past their end: row version and when we first saw it, on the boot-time clock.
        self._expired: dict[str, tuple[str, float]] = {}
        self._generation = 0
        self._few = table.shards <= _FEW_SHARDS

    def new_generation(self, generation: int) -> bool:
        """Search every row again, as rows in an end state may have been put back.

        False if the generation is not new; an eventually consistent read may give a lower one.
        """
        if generation <= self._generation:
            return False
        self._generation = generation
        self._cursors.clear()
        self._advanced.clear()
        self._hints.clear()
        self._stages = dict.fromkeys(self._stages, Stage.READY)
        return True

    def next(self) -> Found | Waiting | Finished:
        """Lease a task, if there is one."""
        searched = leased = later = 0
        passed: set[int] = set()
        for shard in self._shards(passed):
            stage = self._stages[shard]
            enough = searched >= _MOST_SHARDS or (stage is Stage.LEASED and leased >= _SAMPLE)
            if enough and not self._few:
                break
            result = self._search(shard, through=stage is Stage.LEASED)
            if isinstance(result, Lease):
                self._home = shard
                return Found(result)
            if result is None:
                continue
            passed.add(shard)
            if result:
                states = [row.state for row in result]
                leased += states.count(TaskState.LEASED)
                later += states.count(TaskState.READY)
                searched += 1
        if not searched:
            return Finished()
        ended = sum(stage is Stage.ENDED for stage in self._stages.values())
        in_all = (self._table.shards - ended) / searched
        return Waiting(round(leased * in_all), round(later * in_all))

    def _shards(self, passed: set[int]) -> Iterator[int]:
        """Home, while it has something; then those that have, at random; then the others.

        Shards where we have seen leases past their end come first: one worker has to see such a
        lease twice to take it over.
        """
        home = self._home
        if home not in self._cursors:
            self._read_stages()  # a late worker need not search where nothing is
        if self._stages[home] is Stage.READY:
            yield home
        self._read_stages()
        shards = list(range(self._table.shards))
        self._rng.shuffle(shards)
        suspected = {self._shard_of(sk) for sk in self._expired}
        shards.sort(key=lambda shard: shard not in suspected)
        for stage in (Stage.READY, Stage.LEASED):
            for shard in shards:
                if self._stages[shard] is stage and shard not in passed:
                    yield shard

    def _search(self, shard: int, *, through: bool) -> Lease | list[Candidate] | None:
        """A lease from this shard, or its unfinished rows.

        None where other workers found nothing ready, unless it is to be read `through`.
        """
        hint = self._hints.get(shard, "")
        suspects = [sk for sk in self._expired if self._shard_of(sk) == shard]
        scan = through or suspects or self._rng.random() * _SCAN_EVERY < 1
        if hint and not scan:
            lease, _ = self._read_on(shard, hint, steal=False)
            if lease is not None or self._stages[shard] is not Stage.READY:
                return lease
        self._share_cursor(shard)
        lease, unfinished = self._read_on(shard, self._cursors.get(shard, ""), steal=True)
        self._clear(suspects)
        if lease is None and not any(row.state is TaskState.READY for row in unfinished):
            self._share_stage(shard, Stage.LEASED if unfinished else Stage.ENDED)
        return lease or unfinished

    def _shard_of(self, sk: str) -> int:
        return shard_of(parse_task_id(sk)[1], self._table.shards)

    def _clear(self, suspects: list[str]) -> None:
        """Forget suspects that were due for a takeover and are still here: they have ended."""
        due = self._clock.boot_time() - self._table.lease.heartbeat_s
        for sk in suspects:
            if sk in self._expired and self._expired[sk][1] <= due:
                del self._expired[sk]

    def _share_cursor(self, shard: int) -> None:
        """Share how far this shard is processed, or read it; no lease is at risk."""
        if shard in self._cursors and self._advanced[shard] < ROWS_PER_CURSOR:
            return
        ours = self._cursors.get(shard, "")
        theirs = self._shared_cursors.read(shard, self._generation)
        self._cursors[shard] = max(ours, theirs)
        self._advanced[shard] = 0
        if ours > theirs and self._shared_cursors.advance(shard, self._generation, ours):
            self._moved(shard, theirs, ours)

    def _share_stage(self, shard: int, stage: Stage) -> None:
        """Share what is left of this shard, if no other worker has."""
        if not self._few and self._stages[shard] < stage:
            self._read_stages()
            if self._stages[shard] < stage:
                self._shared_cursors.record_stage(shard, self._generation, stage)
        self._stages[shard] = max(self._stages[shard], stage)

    def _read_stages(self) -> None:
        """Read what other workers have found left in each shard."""
        if not self._few:
            for shard, stage in self._shared_cursors.stages(self._generation).items():
                self._stages[shard] = max(self._stages[shard], stage)

    def _read_on(
        self, shard: int, after: str, *, steal: bool
    ) -> tuple[Lease | None, list[Candidate]]:
        """Page through a shard until a row is leased; else every unfinished row past `after`."""
        size = _FIRST_PAGE
        unfinished: list[Candidate] = []
        while True:
            rows = self._table.candidates(shard, after, size)
            open_rows = [row for row in rows if not row.state.terminal]
            if steal and not unfinished:
                self._advance(shard, rows)
            # Leases that have run out come first: every scan records them, or takes them over.
            lease = (self._steal_one(open_rows) if steal else None) or self._claim_one(open_rows)
            if lease is not None:
                self._note_ready(shard, after, rows)
                return lease, []
            unfinished += open_rows
            if len(rows) < size:
                return None, unfinished
            after = rows[-1].sk
            if size == _FIRST_PAGE:
                # The next page is likely the same: other workers may know where it ends.
                if steal and not unfinished:
                    after = max(after, self._shared_cursors.read(shard, self._generation))
                    self._cursors[shard] = after
                if not steal:
                    self._read_stages()
                    if self._stages[shard] is not Stage.READY:
                        return None, []
            size = min(size * _PAGE_GROWTH, _LARGEST_PAGE)

    def _note_ready(self, shard: int, after: str, rows: list[Candidate]) -> None:
        """Remember where the first ready row was: other workers have the rows before it."""
        before = takewhile(lambda row: row.state is not TaskState.READY, rows)
        self._hints[shard] = max((row.sk for row in before), default=after)

    def _advance(self, shard: int, rows: list[Candidate]) -> None:
        for row in takewhile(lambda row: row.state.terminal, rows):
            self._cursors[shard] = row.sk
            self._advanced[shard] += 1

    def _claim_one(self, rows: list[Candidate]) -> Lease | None:
        now_ms = int(self._clock.now() * 1000)
        claimable = (
            row for row in rows if row.state is TaskState.READY and row.not_before_ms <= now_ms
        )
        # Of a longer page, too, only the first: a shard is processed in about its order.
        ready = list(islice(claimable, _FIRST_PAGE))
        for row in self._rng.sample(ready, min(_CLAIM_TRIES, len(ready))):
            result = self._taken(self._table.claim, row.read())
            if isinstance(result, Claimed):
                return result.lease
        return None

    def _taken(
        self, take: Callable[[TaskRow, str, str], Claimed | GivenUp | None], row: TaskRow
    ) -> Claimed | GivenUp | None:
        request = uuid.uuid4().hex
        try:
            return take(row, self._owner, request)
        except ServiceError:
            self._unanswered(row, request)
            raise

    def _steal_one(self, candidates: list[Candidate]) -> Lease | None:
        dead_ms = int((self._clock.now() - self._table.lease.margin_s) * 1000)
        for candidate in candidates:
            if candidate.state is not TaskState.LEASED or candidate.lease_until_ms >= dead_ms:
                self._expired.pop(candidate.sk, None)
                continue
            row = candidate.read()
            version, since = self._expired.get(row.sk, ("", 0.0))
            if row.lease_until_ms and version != row.version:
                # Seen for the first time: a live holder changes the version within a heartbeat.
                self._expired[row.sk] = (row.version, self._clock.boot_time())
            elif (
                not row.lease_until_ms  # its holder is known to be dead
                or self._clock.boot_time() - since >= self._table.lease.heartbeat_s
            ):
                self._expired.pop(row.sk, None)
                result = self._taken(self._table.steal, row)
                detail: dict[str, Value] = {"task": row.task, "attempt": row.attempt}
                detail |= {"lost": row.lost + 1, "from": row.owner}
                if isinstance(result, GivenUp):
                    self._record_event("quarantined", detail)
                if isinstance(result, Claimed):
                    self._record_event("lease_stolen", detail)
                    return result.lease
        return None

"""Planning: items to a draft on S3, a draft to the round's plan, a plan to task rows.

    draft     segments and a title, under a number of its own; nothing is in the table
    adopt     one conditional write makes one draft the round's plan, for good
    finish    task rows from the plan's segments (conditional puts), then the round is opened

Each may be cut short and begun again. Who has drafted and is not adopted deletes their own
draft, and nothing else; whoever comes later finishes the plan that was adopted, whoever made it.
A draft that nobody deletes is garbage, which ``slurmctl gc`` finds once the round has a plan.

Constant memory. Requests: one PUT per segment and one for the title, a write to adopt, one per
task, one per 2,000 tasks as a cursor; to finish another's plan a GET per segment.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol import keys
from slurm_worker.protocol.job_rows import RoundRow
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import RoundState
from slurm_worker.protocol.slices import Slice, pack_slice
from slurm_worker.protocol.task_table import TaskTable

SEGMENT_ITEMS = 50_000
_WRITERS = 32
_CURSOR_EVERY = 2_000

Log = Callable[[str], None]
Items = Iterable[tuple[str, dict[str, Any]]]


class PlanConflict(UserError):
    """Objects of a round's plan are missing, or are not what was planned."""


@dataclass(frozen=True, slots=True)
class Planned:
    """What a round came to."""

    tasks: int
    items: int
    retried: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Title:
    """What a draft is of, and what it comes to: the last object of a draft that is whole.

    Args:
        tasks: slices in its segments.
        items: items in them.
        sha256: over the digests of its slices, in order, in hex.
        retried: in a retry's round, its items by the error class they had failed with.
        identity: of a job's first round: see `JobRow`.
        shards: likewise.
        source: likewise: the input, as the config names it.
        version: likewise: see `coordinator.inputs.version_of`.
    """

    tasks: int
    items: int
    sha256: str
    retried: dict[str, int] = field(default_factory=dict)
    identity: str = ""
    shards: int = 0
    source: str = ""
    version: str = ""
    v: int = 1

    @classmethod
    def read(cls, store: JobStore, round_no: int, draft: int) -> Title | None:
        """The title of a draft; None where it isn't there."""
        data = store.objects.get(store.paths.title(round_no, draft))
        return None if data is None else cls(**json.loads(data))


class Tally:
    """Counts slices that pass, and digests their digests."""

    def __init__(self) -> None:
        self.tasks = 0
        self.items = 0
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Over the digests of the slices so far."""
        return self._digest.hexdigest()

    def add(self, where: Slice) -> Slice:
        """Count one."""
        self.tasks += 1
        self.items += where.count
        self._digest.update(bytes.fromhex(where.sha256))
        return where

    def agrees(self, title: Title) -> bool:
        """Whether these are the slices that a title tells of."""
        return (self.tasks, self.items, self.sha256) == (title.tasks, title.items, title.sha256)


class Draft:
    """Segments that one planner has written, under a number that no other has."""

    def __init__(self, store: JobStore, round_no: int, spool: Path) -> None:
        self.number = keys.new_draft()
        self._store = store
        self._round_no = round_no
        self._spool = spool

    def slices(self) -> Iterator[Slice]:
        """Its slices, in order, from this machine's disk."""
        with self._spool.open() as lines:
            for line in lines:
                yield Slice(**json.loads(line))

    def settle(self, adopted: int) -> None:
        """Delete the draft, if another is the round's plan."""
        if adopted != self.number:
            self.discard()

    def discard(self) -> None:
        """Delete the draft; what can't be deleted now is left to ``slurmctl gc``."""
        with suppress(ServiceError):
            self._store.objects.delete(self._store.paths.title(self._round_no, self.number))
            self._store.objects.delete_many(list(self._store.segments(self._round_no, self.number)))

    def write(self, items: Items, bundle: int, log: Log) -> Tally:
        """Write the segments; the items are read once."""
        tally = Tally()
        per_segment = max(1, SEGMENT_ITEMS // bundle)
        bundles = _bundles(iter(items), bundle)
        place = 0
        with self._spool.open("w") as out:
            while group := list(islice(bundles, per_segment)):
                number = keys.segment_number(self.number, place)
                body = bytearray()
                for each in group:
                    data = pack_slice(each)
                    digest = hashlib.sha256(data).hexdigest()
                    where = Slice(number, len(body), len(data), len(each), digest)
                    out.write(json.dumps(asdict(tally.add(where))) + "\n")
                    body += data
                self._put_segment(number, bytes(body))
                place += 1
                log(f"read {tally.items:,} items")
        return tally

    def entitle(self, title: Title) -> None:
        """Say that the draft is whole."""
        data = json.dumps(asdict(title), sort_keys=True).encode()
        self._store.objects.put(self._store.paths.title(self._round_no, self.number), data)

    def _put_segment(self, number: int, body: bytes) -> None:
        key = self._store.paths.segment(self._round_no, number)
        # Refused is our own first try whose reply was lost.
        if not self._store.objects.put_new(key, body) and self._store.objects.get(key) != body:
            raise ServiceError(f"{key} exists with other content; submit again")


@contextmanager
def drafted(
    store: JobStore,
    round_no: int,
    items: Items,
    bundle: int,
    check: Callable[[], None],
    title: Callable[[Tally], Title],
    log: Log,
) -> Iterator[Draft]:
    """A draft of a round, whole; deleted where it could not be made.

    Args:
        store: the job's objects.
        round_no: the round.
        items: its (key, item) pairs.
        bundle: items per task.
        check: called when all are read; raises a UserError to refuse them.
        title: what the draft is of; called then, too.
        log: told of progress.
    """
    with tempfile.TemporaryDirectory(prefix="airflow-slurm-plan-") as folder:
        draft = Draft(store, round_no, Path(folder) / "slices.jsonl")
        try:
            tally = draft.write(items, bundle, log)
            check()
            draft.entitle(title(tally))
        except BaseException:
            draft.discard()
            raise
        # From here on the draft may be the round's plan: only its round's row can tell.
        yield draft


class Planner:
    """Plans one round.

    Args:
        store: the job's objects.
        table: its task rows.
        jobs: its own rows.
        bundle: items per task.
        log: told of progress, a line at a time.
    """

    def __init__(
        self, store: JobStore, table: TaskTable, jobs: JobTable, bundle: int, log: Log
    ) -> None:
        self._store = store
        self._table = table
        self._jobs = jobs
        self._bundle = bundle
        self._log = log

    def plan(
        self,
        round_row: RoundRow,
        items: Items,
        check: Callable[[], None],
        retried: Callable[[], dict[str, int]],
    ) -> Planned:
        """Write the round and open it; return at once if it is open already.

        Args:
            round_row: the round, created.
            items: its (key, item) pairs; not read where the round has a plan already.
            check: called when all are read and nothing is in the table yet; raises a
                UserError to refuse them.
            retried: called then, too: in a retry's round, items by error class.

        Raises:
            UserError: if the items are refused; otherwise as `finish`.
        """
        if round_row.state is RoundState.OPEN or round_row.draft:
            return self.finish(round_row)
        if begun_without_draft(self._store, self._table, round_row):
            deque(items, maxlen=0)
            return self.finish(round_row, retried=retried())

        def title(tally: Tally) -> Title:
            return Title(tally.tasks, tally.items, tally.sha256, retried())

        number = round_row.number
        with drafted(self._store, number, items, self._bundle, check, title, self._log) as draft:
            round_row = self._jobs.adopt_draft(number, draft.number)
            draft.settle(round_row.draft)
            return self.finish(round_row, draft)

    def finish(
        self,
        round_row: RoundRow,
        draft: Draft | None = None,
        retried: Mapping[str, int] | None = None,
    ) -> Planned:
        """Write the task rows of the round's plan and open it, unless it is open.

        Args:
            round_row: the round; it has a plan.
            draft: one that is at hand; may be another than the plan.
            retried: of a round that a release without drafts has begun.

        Raises:
            PlanConflict: if segments of the plan are missing.
            RowConflict: if rows of another plan are there.
        """
        if round_row.state is RoundState.OPEN:
            return Planned(round_row.tasks, round_row.items, round_row.retried)
        number = round_row.number
        if draft is not None and draft.number == round_row.draft:
            slices = draft.slices()
        else:
            slices = self._store.planned_slices(number, round_row.draft)
        title = Title.read(self._store, number, round_row.draft) if round_row.draft else None
        tally = self._write_rows(round_row, slices)
        if round_row.draft and (title is None or not tally.agrees(title)):
            raise PlanConflict(
                f"input: objects of round {number} of {self._table.job!r} are missing below "
                f"{self._store.paths.segments(number)} or are not what was planned; restore them, "
                "or submit under another job_id"
            )
        counts = title.retried if title else dict(retried or {})
        self._jobs.open_round(number, tally.tasks, tally.items, counts)
        self._log(f"planned {tally.items:,} items as {tally.tasks:,} tasks")
        return Planned(tally.tasks, tally.items, counts)

    def _write_rows(self, round_row: RoundRow, slices: Iterator[Slice]) -> Tally:
        def create(numbered: tuple[int, Slice]) -> None:
            self._table.create(round_row.number, *numbered)

        tally = Tally()
        numbered = enumerate(map(tally.add, slices))
        deque(islice(numbered, round_row.cursor), maxlen=0)
        with ThreadPoolExecutor(_WRITERS) as pool:
            while batch := list(islice(numbered, _CURSOR_EVERY)):
                for _ in pool.map(create, batch):
                    pass
                self._jobs.advance_cursor(round_row.number, tally.tasks)
                self._log(f"wrote {tally.tasks:,} task rows")
        return tally


def begun_without_draft(store: JobStore, table: TaskTable, round_row: RoundRow) -> bool:
    """Whether a release without drafts has written task rows of a round, all its segments before.

    A list request; where such segments are there, one query per shard.
    """
    if next(store.segments(round_row.number, 0), None) is None:
        return False
    return next(table.rows_of_round(round_row.number), None) is not None


def _bundles(
    items: Iterator[tuple[str, dict[str, Any]]], size: int
) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    while bundle := list(islice(items, size)):
        yield bundle

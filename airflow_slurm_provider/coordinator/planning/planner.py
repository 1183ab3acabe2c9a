"""Planning: items to a draft on S3, a draft to the round's plan, a plan to task rows.

    draft     segments, the list of the input's files and a summary, under a number of its own; the
              table does not change
    adopt     one conditional write makes one draft the round's plan, for good
    finish    task rows from the plan's segments (conditional puts), then the round opens

Each step may be interrupted and started again. A planner whose draft is not adopted deletes that
draft, and nothing else. Any later planner finishes the adopted plan, no matter who made it. A
draft that nobody deletes is garbage: ``slurmctl gc`` finds it once the round has a plan.

Memory is constant. Requests: one PUT per segment, one for the summary, one for the list of files
(more if it is over 8 MB). A write to adopt, one
per task, one per 2,000 tasks as a cursor. Finishing the plan of another process: a GET per segment
and one for the summary.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from airflow_slurm_provider.coordinator.services import Log
from airflow_slurm_provider.units import format_count
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
#: Task rows of a round between two writes of how many exist.
CURSOR_EVERY = 2_000

Items = Iterable[tuple[str, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class DraftSummary:
    """What a draft holds. It is the last object of a draft: with it the draft is complete."""

    tasks: int
    items: int
    sha256: str  #: over the digests of its slices, in order, in hex
    #: In a retry round, the number of items by the error class of their failure
    retried: dict[str, int] = field(default_factory=dict)
    identity: str = ""  #: of a job's first round, as the fields below: see `JobRow`
    shards: int = 0
    source: str = ""  #: the input, as the config names it
    version: str = ""  #: see `coordinator.inputs.version_of`
    v: int = 1

    @classmethod
    def read(cls, store: JobStore, round_no: int, draft: int) -> DraftSummary | None:
        """The summary of a draft; None if it is missing, or for a plan without a draft (0)."""
        key = store.paths.draft_summary(round_no, draft)
        data = store.objects.get(key) if draft else None
        return None if data is None else cls(**json.loads(data))


class SliceTotals:
    """Counts slices, and computes a digest of their digests."""

    def __init__(self) -> None:
        self.tasks = 0
        self.items = 0
        self._digest = hashlib.sha256()

    @property
    def figures(self) -> tuple[int, int, str]:
        """Tasks and items, and the digest over the digests of the slices, so far."""
        return self.tasks, self.items, self._digest.hexdigest()

    def add(self, where: Slice) -> Slice:
        """Count one slice, and return it."""
        self.tasks += 1
        self.items += where.count
        self._digest.update(bytes.fromhex(where.sha256))
        return where

    def match(self, summary: DraftSummary) -> bool:
        """Whether these are the slices of the summary's draft."""
        return self.figures == (summary.tasks, summary.items, summary.sha256)


class Draft:
    """Segments that one planner has written, under a number that no other planner has."""

    def __init__(self, store: JobStore, round_no: int, spool: Path) -> None:
        self.number = keys.new_draft()
        self.totals = SliceTotals()
        self.summary: DraftSummary | None = None
        self._store = store
        self._round_no = round_no
        self._spool = spool

    def slices(self) -> Iterator[Slice]:
        """Its slices, in order, from this machine's disk."""
        with self._spool.open() as lines:
            for line in lines:
                yield Slice(**json.loads(line))

    def discard_unless(self, adopted: int) -> None:
        """Delete the draft if another one, or none (0), is the round's plan.

        ``slurmctl gc`` deletes what can't be deleted now.
        """
        if adopted == self.number:
            return
        with suppress(ServiceError):
            paths, objects = self._store.paths, self._store.objects
            objects.delete(paths.draft_summary(self._round_no, self.number))
            objects.delete(paths.draft_files(self._round_no, self.number))
            objects.delete_many(list(self._store.segments(self._round_no, self.number)))

    def write(self, items: Items, bundle: int, log: Log) -> None:
        """Write the segments; the items are read once."""
        per_segment = max(1, SEGMENT_ITEMS // bundle)
        source = iter(items)
        bundles = iter(lambda: list(islice(source, bundle)), [])
        groups = iter(lambda: list(islice(bundles, per_segment)), [])
        with self._spool.open("w") as spool:
            for place, group in enumerate(groups):
                number = keys.segment_number(self.number, place)
                body = bytearray()
                for task_items in group:
                    data = pack_slice(task_items)
                    digest = hashlib.sha256(data).hexdigest()
                    where = Slice(number, len(body), len(data), len(task_items), digest)
                    spool.write(json.dumps(asdict(self.totals.add(where))) + "\n")
                    body += data
                key = self._store.paths.segment(self._round_no, number)
                objects, segment = self._store.objects, bytes(body)
                # A refusal may come from our own first try, whose reply was lost.
                if not objects.put_new(key, segment) and objects.get(key) != segment:
                    raise ServiceError(f"{key} exists with other content; submit again")
                log(f"read {format_count(self.totals.items, 'item')}")

    def write_files(self, lines: Iterable[bytes]) -> None:
        """Store the list of the input's files, as JSON lines."""
        path = self._spool.with_name("files.jsonl.gz")
        with gzip.GzipFile(path, "wb", mtime=0) as file:
            file.writelines(lines)
        key = self._store.paths.draft_files(self._round_no, self.number)
        self._store.objects.upload(key, str(path))

    def complete(self, summary: DraftSummary) -> None:
        """Write the summary: the draft is complete."""
        data = json.dumps(asdict(summary), sort_keys=True).encode()
        self._store.objects.put(self._store.paths.draft_summary(self._round_no, self.number), data)
        self.summary = summary


@contextmanager
def new_draft(
    store: JobStore, round_no: int, items: Items, bundle: int, log: Log
) -> Iterator[Draft]:
    """A draft of a round, with `bundle` items per task; `log` gets a line per segment.

    It has no summary yet. A draft that the caller does not complete is deleted.
    """
    with tempfile.TemporaryDirectory(prefix="airflow-slurm-plan-") as folder:
        draft = Draft(store, round_no, Path(folder) / "slices.jsonl")
        try:
            draft.write(items, bundle, log)
            yield draft
        finally:
            # A complete draft may be the round's plan: only the round's row can tell.
            if draft.summary is None:
                draft.discard_unless(adopted=0)


class Planner:
    """Plans one round; `log` gets a line per step."""

    def __init__(self, store: JobStore, table: TaskTable, jobs: JobTable, log: Log) -> None:
        self._store = store
        self._table = table
        self._jobs = jobs
        self._log = log

    def plan(
        self,
        round_row: RoundRow,
        items: Items,
        bundle: int,
        retried: Callable[[], dict[str, int]] = dict,
    ) -> RoundRow:
        """Write a round that was created, and open it, unless it is open already; return its row.

        The items are not read if the round has a plan already. When all are read, `retried` gives
        for a retry round the number of items by error class. It raises a UserError to refuse them.
        """
        if round_row.state is RoundState.OPEN or round_row.draft:
            return self.finish(round_row)
        if begun_without_draft(self._store, self._table, round_row):
            deque(items, maxlen=0)
            return self.finish(replace(round_row, retried=retried()))
        number = round_row.number
        with new_draft(self._store, number, items, bundle, self._log) as draft:
            draft.complete(DraftSummary(*draft.totals.figures, retried()))
            round_row = self._jobs.adopt_draft(number, draft.number)
            draft.discard_unless(round_row.draft)
            return self.finish(round_row, draft)

    def finish(self, round_row: RoundRow, draft: Draft | None = None) -> RoundRow:
        """Write the task rows of the round's plan and open it, unless it is open; return its row.

        `draft` is on this machine; it may differ from the plan.

        Raises:
            UserError: if segments of the plan are missing.
            RowConflict: if there are rows of another plan.
        """
        if round_row.state is RoundState.OPEN:
            return round_row
        number, plan = round_row.number, round_row.draft
        here = draft if draft and draft.number == plan else None
        summary = here.summary if here else DraftSummary.read(self._store, number, plan)
        slices = here.slices() if here else self._store.planned_slices(number, plan)
        totals = self._write_rows(round_row, slices)
        if plan and (summary is None or not totals.match(summary)):
            raise UserError(
                f"input: objects of round {number} of {self._table.job!r} are missing below "
                f"{self._store.paths.segments(number)} or were changed after planning; restore "
                "them, or submit under another job_id"
            )
        retried = dict(summary.retried if summary else round_row.retried)
        tasks, items = totals.tasks, totals.items
        self._jobs.open_round(number, tasks, items, retried)
        self._log(f"planned {format_count(items, 'item')} as {format_count(tasks, 'task')}")
        return replace(round_row, state=RoundState.OPEN, tasks=tasks, items=items, retried=retried)

    def _write_rows(self, round_row: RoundRow, slices: Iterator[Slice]) -> SliceTotals:
        create = partial(self._table.create, round_row.number)
        totals = SliceTotals()
        numbered = enumerate(map(totals.add, slices))
        deque(islice(numbered, round_row.cursor), maxlen=0)
        with ThreadPoolExecutor(_WRITERS) as pool:
            while batch := list(islice(numbered, CURSOR_EVERY)):
                deque(pool.map(create, *zip(*batch, strict=True)), maxlen=0)
                self._jobs.advance_cursor(round_row.number, totals.tasks)
                self._log(f"wrote {format_count(totals.tasks, 'task row')}")
        return totals


def begun_without_draft(store: JobStore, table: TaskTable, round_row: RoundRow) -> bool:
    """Whether an older release, which made no drafts, has written task rows of a round.

    That release wrote all segments first. A list request; if there are such segments, one query
    per shard.
    """
    number = round_row.number
    return any(True for _ in store.segments(number, 0)) and any(
        True for _ in table.rows_of_round(number)
    )

"""Planning: items to segments on S3 to task rows, in constant memory.

A plan is written in three steps, each safe to repeat: segments (immutable objects; a
restarted planner finds its own and checks that they are the same), task rows
(conditional puts; a claimed row is never reset), then the round is opened. Nothing is in
the table before the whole input was read and found good.

Requests: one PUT per segment, one write per task, one write per 2,000 tasks as a cursor.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from slurm_worker.errors import UserError
from slurm_worker.jobs import JobTable, RoundRow
from slurm_worker.keys import RoundState
from slurm_worker.store import JobStore, Slice, pack_slice
from slurm_worker.table import TaskTable

SEGMENT_ITEMS = 50_000
_WRITERS = 32
_CURSOR_EVERY = 2_000


class PlanConflict(UserError):
    """A segment of this round exists with other items."""


@dataclass(frozen=True, slots=True)
class Planned:
    """What a round came to."""

    tasks: int
    items: int


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
        self,
        store: JobStore,
        table: TaskTable,
        jobs: JobTable,
        bundle: int,
        log: Callable[[str], None],
    ) -> None:
        self._store = store
        self._table = table
        self._jobs = jobs
        self._bundle = bundle
        self._log = log

    def plan(
        self,
        round_row: RoundRow,
        items: Iterable[tuple[str, dict[str, Any]]],
        check: Callable[[], None],
        retried: Callable[[], dict[str, int]],
    ) -> Planned:
        """Write the round and open it; return at once if it is open already.

        Args:
            round_row: the round, created.
            items: its (key, item) pairs, in an order that a restart repeats.
            check: called when all are read and nothing is in the table yet; raises a
                UserError to refuse them.
            retried: called then, too: in a retry's round, items by error class.
        """
        if round_row.state is RoundState.OPEN:
            return Planned(round_row.tasks, round_row.items)
        with tempfile.TemporaryDirectory(prefix="airflow-slurm-plan-") as folder:
            spool = Path(folder) / "slices.jsonl"
            planned = self._write_segments(round_row.number, items, spool)
            check()
            self._write_rows(round_row, spool)
        self._jobs.open_round(round_row.number, planned.tasks, planned.items, retried())
        self._log(f"planned {planned.items:,} items as {planned.tasks:,} tasks")
        return planned

    def _write_segments(
        self, round_no: int, items: Iterable[tuple[str, dict[str, Any]]], spool: Path
    ) -> Planned:
        tasks = total = segment = 0
        per_segment = max(1, SEGMENT_ITEMS // self._bundle)
        bundles = _bundles(iter(items), self._bundle)
        with spool.open("w") as out:
            while group := list(islice(bundles, per_segment)):
                body = bytearray()
                for bundle in group:
                    data = pack_slice(bundle)
                    digest = hashlib.sha256(data).hexdigest()
                    where = Slice(segment, len(body), len(data), len(bundle), digest)
                    out.write(json.dumps(asdict(where)) + "\n")
                    body += data
                    total += len(bundle)
                self._put_segment(round_no, segment, bytes(body))
                tasks += len(group)
                segment += 1
                self._log(f"read {total:,} items")
        return Planned(tasks, total)

    def _put_segment(self, round_no: int, number: int, body: bytes) -> None:
        key = self._store.paths.segment(round_no, number)
        if self._store.objects.put_new(key, body):
            return
        if self._store.objects.get(key) != body:
            raise PlanConflict(
                f"input: {key} exists with other content: the input, or the compressor, changed "
                "since an earlier submit was cut short; submit under another job_id"
            )

    def _write_rows(self, round_row: RoundRow, spool: Path) -> None:
        def create(numbered: tuple[int, Slice]) -> None:
            self._table.create(round_row.number, *numbered)

        with spool.open() as lines, ThreadPoolExecutor(_WRITERS) as pool:
            slices = (Slice(**json.loads(line)) for line in lines)
            numbered = islice(enumerate(slices), round_row.cursor, None)
            written = round_row.cursor
            while batch := list(islice(numbered, _CURSOR_EVERY)):
                for _ in pool.map(create, batch):
                    pass
                written += len(batch)
                self._jobs.note_cursor(round_row.number, written)
                self._log(f"wrote {written:,} task rows")


def _bundles(
    items: Iterator[tuple[str, dict[str, Any]]], size: int
) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    while bundle := list(islice(items, size)):
        yield bundle

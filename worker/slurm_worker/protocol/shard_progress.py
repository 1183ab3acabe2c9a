"""How far each shard is processed, and the totals of its done tasks: shared by all workers.

    shard   done done failed done done leased done leased ready ready …
            ├────── the total ───────┤ after; the failed row is set aside
                                     ▲ cursor: every row up to here is in an end state

A row in an end state stays so within a *generation* of the job (`JobRow.generation`). Only a new
round or a repair brings old rows back; both begin a new generation, in which older cursors are
ignored. So a cursor that is missing or behind costs reads, and is never wrong.

The *stage* of a shard is what is left of it. ENDED is as certain as a cursor. LEASED is what a
worker saw: a lease may expire or be given back.

The worker that moves a shard's cursor past a multiple of `ROWS_PER_TOTAL` rows adds up the rows
before it. The first status query (`coordinator/status/snapshot.py`) starts from these totals,
however old the last query is. Each total has a cursor of its own; a total that is lost or behind
costs reads.

Requests: half a read unit to read a cursor, or the stages of all shards. One write per
`ROWS_PER_CURSOR` rows that a shard has advanced, and two at its end. Per `ROWS_PER_TOTAL` rows of
a shard: two reads of the job's rows, a Query of about that many task rows, a GET and a PUT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from slurm_worker.protocol import keys
from slurm_worker.protocol.job_rows import JobRow, RoundRow
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.job_totals import JobTotals
from slurm_worker.protocol.keys import JobId, RoundState, TaskState
from slurm_worker.protocol.ports import Applied, Rows, int_of, str_of
from slurm_worker.protocol.statements import jobs as job_statements
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import TaskRow

#: Rows of a shard between two cursors; fewer rows are read as quickly as the cursor.
ROWS_PER_CURSOR = 25
#: Rows of a shard between two totals.
ROWS_PER_TOTAL = 100
_VERSION = 1
#: Ended rows that are not done and are skipped all the same; each costs a GET per status query.
_MOST_ASIDE = 20


class Stage(IntEnum):
    """What is left of a shard; it only rises."""

    READY = 0  #: tasks to lease, as far as is known
    LEASED = 1  #: only leased tasks
    ENDED = 2  #: nothing


class ShardCursors:
    """The cursors and stages of one job, which has this many `shards`."""

    def __init__(self, rows: Rows, job: JobId, shards: int) -> None:
        self._rows = rows
        self._pk = keys.job_pk(job)
        self._shards = shards

    def read(self, shard: int, generation: int) -> str:
        """The sort key up to which a shard is processed; empty where none is recorded."""
        row = self._rows.get(self._pk, keys.cursor_sk(shard), consistent=False)
        return str_of(row, "after") if row and int_of(row, "generation") == generation else ""

    def advance(self, shard: int, generation: int, after: str) -> bool:
        """Record how far a shard is; False if another worker has recorded more."""
        result = self._rows.update(
            self._pk, keys.cursor_sk(shard), job_statements.advance_shard_cursor(generation, after)
        )
        return isinstance(result, Applied)

    def stages(self, generation: int) -> dict[int, Stage]:
        """What is left of each shard."""
        row = self._rows.get(self._pk, keys.stages_sk(generation), consistent=False) or {}
        names = enumerate(map(job_statements.stage_name, range(self._shards)))
        return {shard: Stage(int_of(row, name)) for shard, name in names}

    def record_stage(self, shard: int, generation: int, stage: Stage) -> None:
        """Record what is left of a shard."""
        self._rows.update(
            self._pk, keys.stages_sk(generation), job_statements.record_stage(shard, stage.value)
        )


@dataclass(slots=True)
class ShardTotal:
    """The first rows of a shard, which no longer change."""

    after: str = ""  #: sort key of the last of them
    #: Sort keys of those that ended and are not done: a retry may bring them back.
    aside: tuple[str, ...] = ()
    done: JobTotals = field(default_factory=JobTotals)  #: the totals of those that are done

    def take(self, row: TaskRow, rounds: Mapping[int, RoundRow]) -> bool:
        """Count the next row; False if it, or a row before it, may still change."""
        round_row = rounds.get(row.round_no)
        if round_row is None or round_row.state is not RoundState.OPEN:
            # Rows before this one may still appear: a round's halves are at its end.
            return False
        if row.state is TaskState.DONE:
            self.done.add_row(row)
        elif row.state.terminal and len(self.aside) < _MOST_ASIDE:
            self.aside = (*self.aside, row.sk)
        else:
            return False
        self.after = row.sk
        return True

    def to_json(self, job: JobRow) -> bytes:
        """The object's bytes."""
        document = {
            "v": _VERSION,
            "job": job.rows_since,
            "after": self.after,
            "aside": list(self.aside),
            "done": self.done.to_dict(),
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes | None, job: JobRow) -> ShardTotal:
        """Read what `to_json` wrote; empty if there is none of this job and this release."""
        raw: dict[str, Any] = json.loads(data) if data else {}
        if raw.get("v") != _VERSION or raw["job"] != job.rows_since:
            return cls()
        return cls(raw["after"], tuple(raw["aside"]), JobTotals.from_dict(raw["done"]))


class ShardTotals:
    """Updates the totals of one job's shards."""

    def __init__(self, store: JobStore, jobs: JobTable, table: TaskTable) -> None:
        self._store = store
        self._jobs = jobs
        self._table = table

    def cursor_advanced(self, shard: int, before: str, after: str) -> None:
        """Update a shard's total after its cursor was advanced, if that is due.

        Raises:
            ServiceError: if the table or the store can't be reached.
        """
        if self._step(before) != self._step(after):
            self.update(shard)

    def update(self, shard: int) -> None:
        """Count every row that can be counted.

        Two workers that do so at the same time read the same rows; the last write stays.
        """
        job = self._jobs.get()
        rounds = {row.number: row for row in self._jobs.rounds()}
        key = self._store.paths.shard_progress(shard)
        found = ShardTotal.from_json(self._store.objects.get(key), job)
        known = found.after
        while True:
            rows = self._table.page(shard, found.after, ROWS_PER_TOTAL)
            if not all(found.take(row, rounds) for row in rows) or len(rows) < ROWS_PER_TOTAL:
                break
        if found.after != known:
            self._store.objects.put(key, found.to_json(job))

    def _step(self, sk: str) -> tuple[int, int]:
        """Rows of the same step are added up together."""
        if not sk:
            return 0, 0
        round_no, sequence = keys.parse_task_id(sk)
        return round_no, sequence // (self._table.shards * ROWS_PER_TOTAL)

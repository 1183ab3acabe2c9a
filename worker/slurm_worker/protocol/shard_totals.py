"""Totals of each shard's done tasks, added up by the workers, so that their rows are not read.

    shard   done done failed done done leased done leased ready ready …
            ├────── the total ───────┤ after
                      aside

The worker that moves a shard's cursor (`shard_cursors.py`) over a multiple of `ROWS_PER_TOTAL`
rows adds up the rows behind it. The first status query (`coordinator/status/snapshot.py`) starts
from these totals, however long nobody has queried the job. A total agrees with its own cursor; one
that is lost or behind costs reads.

Requests per `ROWS_PER_TOTAL` rows of a shard: two reads of the job's rows, a Query of about that
many task rows, a GET and a PUT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from slurm_worker.protocol import keys
from slurm_worker.protocol.job_rows import JobRow, RoundRow
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.job_totals import JobTotals
from slurm_worker.protocol.keys import RoundState, TaskState
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import TaskRow

#: Rows of a shard between two totals.
ROWS_PER_TOTAL = 100
_VERSION = 1
#: Ended rows that are not done and are skipped all the same; each costs a GET per status query.
_MOST_ASIDE = 20


@dataclass(slots=True)
class ShardTotal:
    """The first rows of a shard, which no longer change.

    Args:
        after: sort key of the last of them.
        aside: sort keys of those that ended and are not done: a retry may bring them back.
        done: the totals of those that are done.
    """

    after: str = ""
    aside: tuple[str, ...] = ()
    done: JobTotals = field(default_factory=JobTotals)

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
    """Updates the totals of one job's shards.

    Args:
        store: where they are kept.
        jobs: the job's own rows.
        table: its task rows.
    """

    def __init__(self, store: JobStore, jobs: JobTable, table: TaskTable) -> None:
        self._objects = store.objects
        self._paths = store.paths
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
        key = self._paths.shard_progress(shard)
        found = ShardTotal.from_json(self._objects.get(key), job)
        known = found.after
        while True:
            rows = self._table.page(shard, found.after, ROWS_PER_TOTAL)
            if not all(found.take(row, rounds) for row in rows) or len(rows) < ROWS_PER_TOTAL:
                break
        if found.after != known:
            self._objects.put(key, found.to_json(job))

    def _step(self, sk: str) -> tuple[int, int]:
        """Rows of the same step are added up together."""
        if not sk:
            return 0, 0
        round_no, sequence = keys.parse_task_sk(sk)
        return round_no, sequence // (self._table.shards * ROWS_PER_TOTAL)

"""How far each shard is processed, shared by all workers, so that none reads the rows before.

    shard   done done failed done done leased done leased ready ready …
                                 ▲ cursor: every row up to here is in an end state

A row in an end state stays so within a *generation* of the job (`JobRow.generation`). Only a new
round or a repair brings old rows back; both begin a new generation, in which older cursors are
ignored. So a cursor that is missing or behind costs reads, and is never wrong.

The *stage* of a shard is what is left of it. ENDED is as certain as a cursor. LEASED is what a
worker saw: a lease may expire or be given back.

Requests: half a read unit to read a cursor, or the stages of all shards; one write per
`ROWS_PER_CURSOR` rows that a shard has advanced, and two at its end.
"""

from __future__ import annotations

from enum import IntEnum

from slurm_worker.protocol import keys
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.ports import Applied, Rows, int_of, str_of
from slurm_worker.protocol.statements import jobs as job_statements

#: Rows of a shard between two cursors; fewer rows are read as quickly as the cursor.
ROWS_PER_CURSOR = 25


class Stage(IntEnum):
    """What is left of a shard; it only rises."""

    READY = 0  #: tasks to lease, as far as is known
    LEASED = 1  #: only leased tasks
    ENDED = 2  #: nothing


class ShardCursors:
    """The cursors and stages of one job.

    Args:
        rows: the table.
        job: the job's id.
        shards: the job's number of them.
    """

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
            self._pk,
            keys.cursor_sk(shard),
            job_statements.advance_shard_cursor(generation, after),
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
            self._pk,
            keys.stages_sk(generation),
            job_statements.record_stage(shard, stage.value),
        )

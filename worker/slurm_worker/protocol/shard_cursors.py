"""How far each shard is worked off, shared by all workers: no one need read what is behind it.

    shard   done done failed done done leased done leased ready ready …
                                 ▲ mark: every row up to here is in an end state

A row in an end state stays so within a *generation* of the job (`JobRow.generation`): only a new
round, or a repair, brings old rows back, and either begins a new one, in which older marks count
for nothing. So a mark that is missing or behind costs reads, and is never wrong.

What is left of each shard as a whole is its *stage*: that every row is in an end state is as
sure; that none is ready is what somebody saw, and a lease may run out, or be given back.

Requests: half a read unit to look at a mark, or at the stages of all shards; one write for every
`ROWS_PER_CURSOR` rows that a shard has advanced, and two at its end.
"""

from __future__ import annotations

from enum import IntEnum

from slurm_worker.protocol import job_statements, keys
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.ports import Applied, Rows, int_of, str_of

#: Rows of a shard between two marks; fewer than that are read as quickly as the mark.
ROWS_PER_CURSOR = 25


class Stage(IntEnum):
    """What is left of a shard; it only rises."""

    READY = 0  #: tasks to lease, for all that is known
    LEASED = 1  #: tasks that others hold
    ENDED = 2  #: nothing


class ShardCursors:
    """The marks and stages of one job.

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
        """The sort key up to which a shard is worked off; empty where nobody has told."""
        row = self._rows.get(self._pk, keys.cursor_sk(shard), consistent=False)
        return str_of(row, "after") if row and int_of(row, "generation") == generation else ""

    def advance(self, shard: int, generation: int, after: str) -> bool:
        """Tell how far it is; False if another has seen it further on."""
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
        """Tell what is left of a shard."""
        self._rows.update(
            self._pk,
            keys.stages_sk(generation),
            job_statements.record_stage(shard, stage.value),
        )

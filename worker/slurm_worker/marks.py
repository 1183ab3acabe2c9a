"""How far each shard is worked off, shared by all workers: no one need read what is behind it.

    shard   done done failed done done leased done leased ready ready …
                                 ▲ mark: every row up to here is in an end state

A row in an end state stays so within a *generation* of the job (`JobRow.generation`): only a new
round, or a repair, brings old rows back, and either begins a new one, in which older marks count
for nothing. So a mark that is missing or behind costs reads, and is never wrong.

Requests: half a read unit to look, one write for every `EVERY` rows that a shard has advanced.
"""

from __future__ import annotations

from slurm_worker import expressions, keys
from slurm_worker.keys import JobId
from slurm_worker.ports import Applied, Rows, int_of, str_of

#: Rows of a shard between two marks; fewer than that are read as quickly as the mark.
EVERY = 25


class Marks:
    """The marks of one job.

    Args:
        rows: the table.
        job: the job's id.
    """

    def __init__(self, rows: Rows, job: JobId) -> None:
        self._rows = rows
        self._pk = keys.job_pk(job)

    def find(self, shard: int, generation: int) -> str:
        """The sort key up to which a shard is worked off; empty where nobody has told."""
        row = self._rows.get(self._pk, keys.mark_sk(shard), consistent=False)
        return str_of(row, "after") if row and int_of(row, "generation") == generation else ""

    def move(self, shard: int, generation: int, after: str) -> bool:
        """Tell how far it is; False if another has seen it further on."""
        result = self._rows.update(
            self._pk,
            keys.mark_sk(shard),
            expressions.MARK,
            {"generation": generation, "after": after},
        )
        return isinstance(result, Applied)

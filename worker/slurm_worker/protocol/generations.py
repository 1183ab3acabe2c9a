"""What may bring a row back, so that workers find it: the rule of generations, in one place.

Workers and status queries skip rows in an end state and remember how far they came: cursors and
stages (`node/task_finder.py`), totals (`progress.json`): see `shard_progress.py`.
What they remember is valid within one *generation* of the job (`JobRow.generation`). So:

    Code that makes a row claimable that may have been skipped begins a new generation *after*
    its write, or writes before its round is open: the opening begins a generation.

| what brings a row back | why workers find it |
| --- | --- |
| a retry reopens a failed task | `open_round`: before the round opens, or a generation follows |
| a retry's round has rows of its own | they exist before the round opens |
| a repair creates rows that were lost | it ends by beginning a generation, whatever it found |
| a task is bisected | its halves exist before the whole is in an end state: see `passed` |
| a lease is released, fails or crashes | a leased row is in no end state: it is not skipped |
| any of these stopped or slept between its write and the generation | the next submit that finds \
tasks left begins one |

The table refuses what would break the rule from within: a row comes back once in a round
(`task_statements.reopen`), rounds and generations only rise (`open_job`, `begin_generation`), and a
cursor of an older generation never replaces a newer one (`advance_shard_cursor`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import TaskState
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import TaskRow


def open_round(
    jobs: JobTable, table: TaskTable, round_no: int, failed: Callable[[], Iterable[TaskRow]]
) -> int:
    """Put back a planned retry's `failed` tasks, then open its round; return how many came back.

    The task rows of the round itself exist. Safe to repeat at any time. A round that is open
    already gets no tasks back: its workers have processed them. But an earlier call may have
    slept, and put a task back behind them, so a new generation makes them look again. Requests: a
    read and a write of the job's row, a write for each task, and one more where the round was
    open.
    """
    back = 0
    if jobs.get().rounds <= round_no:
        back = sum(table.reopen(row, round_no) for row in failed())
    if not jobs.open(round_no + 1):
        jobs.begin_generation()
    return back


def passed(row: TaskRow | None) -> bool:
    """Whether workers may have skipped the rows of a bisected task's halves.

    No worker skips a whole that is not in an end state. A whole that is done had its halves
    first.
    """
    return row is not None and row.state in (TaskState.FAILED, TaskState.QUARANTINED)

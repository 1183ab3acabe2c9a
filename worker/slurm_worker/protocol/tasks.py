"""A task's row as it was read, the lease on it, and the results of claiming one."""

from __future__ import annotations

from dataclasses import dataclass, field

from slurm_worker.protocol import keys
from slurm_worker.protocol.keys import TaskId, TaskState
from slurm_worker.protocol.ports import Row, int_of
from slurm_worker.protocol.row_fields import RowFields
from slurm_worker.protocol.slices import SLICE_FIELDS, Slice
from slurm_worker.protocol.task_history import Crash, HistoryEntry, read_crashes, read_history


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One row of the table, read.

    Times are in milliseconds, by AWS's clock. In a task that is done, `worker`, `node`,
    `took_ms` (of the attempt that won) and `requests` come from its marker.
    """

    round_no: int
    sequence: int
    state: TaskState
    where: Slice
    attempt: int = 0
    owner: str = ""
    version: str = ""
    lease_until_ms: int = 0
    not_before_ms: int = 0
    tries: int = 0
    lost: int = 0
    items_ok: int = 0
    items_failed: int = 0
    failed_by: dict[str, int] = field(default_factory=dict)
    error_class: str = ""
    error: str = ""
    winner: int = 0
    rows: int = 0
    checkpoint: str = ""
    crashes: tuple[Crash, ...] = ()
    history: tuple[HistoryEntry, ...] = ()
    reopened: int = 0
    started_ms: int = 0
    finished_ms: int = 0
    worker: str = ""
    node: str = ""
    took_ms: int = 0
    requests: dict[str, int] = field(default_factory=dict)

    @property
    def task(self) -> TaskId:
        """The task's id."""
        return keys.task_id(self.round_no, self.sequence)

    @property
    def sk(self) -> str:
        """The row's sort key."""
        return keys.task_sk(self.round_no, self.sequence)

    @property
    def can_bisect(self) -> bool:
        """Whether the task may be made two halves."""
        return self.where.count > 1 and keys.halves(self.task) is not None

    @classmethod
    def from_row(cls, row: Row) -> TaskRow:
        """Read a row of the table."""
        round_no, sequence = keys.parse_task_id(str(row["sk"]))
        return _TASK.read(
            row,
            round_no=round_no,
            sequence=sequence,
            where=SLICE_FIELDS.read(row),
            crashes=read_crashes(row),
            history=read_history(row),
        )

    def to_row(self) -> Row:
        """The attributes of a new row, without its key."""
        return {**_TASK.write(self), **SLICE_FIELDS.write(self.where)}


_TASK = RowFields(
    TaskRow,
    names={
        "lease_until_ms": "lease_until",
        "not_before_ms": "not_before",
        "started_ms": "started",
        "finished_ms": "finished",
        "took_ms": "took",
    },
    read={"state": TaskState},
    beside=("round_no", "sequence", "where", "crashes", "history"),
)


class Candidate:
    """A row of a page; only what a choice needs is read. Times are those of `TaskRow`."""

    __slots__ = ("_row", "lease_until_ms", "not_before_ms", "sk", "state")

    def __init__(self, row: Row) -> None:
        self._row = row
        self.sk = str(row["sk"])
        self.state = TaskState(row["state"])
        self.not_before_ms = int_of(row, "not_before")
        self.lease_until_ms = int_of(row, "lease_until")

    def read(self) -> TaskRow:
        """The whole row."""
        return TaskRow.from_row(self._row)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a task, fenced by `attempt`."""

    row: TaskRow
    owner: str

    @property
    def task(self) -> TaskId:
        """The task's id."""
        return self.row.task

    @property
    def attempt(self) -> int:
        """The fencing token."""
        return self.row.attempt

    def to_bisect(self, max_lost: int) -> bool:
        """Whether the task lost its lease too often to be run as a whole."""
        return self.row.lost >= max_lost and self.row.can_bisect


@dataclass(frozen=True, slots=True)
class Claimed:
    """The lease is ours."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The task lost its lease too often, and this call has quarantined it."""

"""A job's own rows as they are read: META, rounds, submissions, audit events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from slurm_worker.protocol import keys
from slurm_worker.protocol.keys import JobId, JobState, RoundState, SubmitState
from slurm_worker.protocol.ports import Row, Value
from slurm_worker.protocol.row_fields import RowFields

#: Of a job; a sort key has three digits for them.
_MOST_ROUNDS = 1_000


@dataclass(frozen=True, slots=True)
class JobRow:
    """The META row."""

    job: JobId
    state: JobState
    shards: int
    identity: str  #: digest of what must not change between two submits of one job id
    config: str  #: digest of the resolved configuration that new workers get
    rounds: int  #: rounds that are open for work
    stop: str = ""  #: why the job's breaker is tripped; empty where it isn't
    created_ms: int = 0
    paused: str = ""  #: who has paused the job; empty where it isn't
    voided: int = 0  #: rises whenever what is known of old rows becomes void; 0 at first
    #: The plan of its first round, decided when the job was created; 0 if an earlier release has
    #: created it.
    draft: int = 0

    @property
    def generation(self) -> int:
        """Rises when rows that were in an end state may have come back: see `generations`."""
        return self.voided * _MOST_ROUNDS + self.rounds

    @property
    def rows_since(self) -> str:
        """Identifies the job of this name and the time since which its done rows are valid."""
        return f"{self.created_ms}-{self.voided}"


JOB_FIELDS = RowFields(
    JobRow,
    names={"created_ms": "created", "voided": "repaired"},
    read={"state": JobState},
    beside=("job",),
)


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One batch of tasks planned together."""

    number: int
    state: RoundState
    source: str
    #: Of a retry: by error class, how many retry rounds its failures get.
    selector: dict[str, int] = field(default_factory=dict)
    tasks: int = 0
    items: int = 0
    cursor: int = 0  #: how many of its task rows exist for certain
    created_ms: int = 0
    opened_ms: int = 0
    #: In a retry's round, its items by the error class they had failed with.
    retried: dict[str, int] = field(default_factory=dict)
    #: In a retry's round, the failed tasks that it puts back, by error class.
    tasks_back: dict[str, int] = field(default_factory=dict)
    only: str = ""  #: digest of the list of items that a retry was requested for; empty for all
    #: Options of its array in addition to, or instead of, the job's.
    slurm: dict[str, str] = field(default_factory=dict)
    delay_s: int = 0  #: seconds before its array may start
    version: str = ""  #: of the input that was planned; see `coordinator.inputs.version_of`
    #: Whose segments hold its items; 0 if none is decided, or if an earlier release has planned it.
    draft: int = 0
    appended: bool = False  #: its items were new in the input; after the first, others are retries

    @property
    def new_items(self) -> int:
        """How many items of the input it has added to the job."""
        return self.items if self.appended or not self.number else 0

    @property
    def classes(self) -> set[str]:
        """The error classes that a retry's round is about."""
        return {*self.retried, *self.tasks_back}

    @classmethod
    def from_row(cls, row: Row) -> RoundRow:
        """Read a row of the table."""
        return ROUND_FIELDS.read(row, number=int(str(row["sk"]).removeprefix(keys.ROUND_PREFIX)))


ROUND_FIELDS = RowFields(
    RoundRow,
    names={"created_ms": "created", "opened_ms": "opened", "delay_s": "delay"},
    read={"state": RoundState},
    always=("selector", "cursor"),
    beside=("number",),
)


@dataclass(frozen=True, slots=True)
class SubmissionRow:
    """Workers that were submitted together; `token` is in their Slurm job names."""

    round_no: int
    number: int
    state: SubmitState
    token: str
    workers: int  #: how many were wanted
    array_size: int  #: the most that one array may hold
    slurm_job_ids: tuple[str, ...] = ()  #: the arrays, several where one may not hold all workers
    intent_ms: int = 0
    submitted_ms: int = 0
    requested: bool = False  #: by a user, in addition to those that the round gets by itself
    refused: bool = False  #: Slurm has refused the arrays, and had none of this token then

    @property
    def sk(self) -> str:
        """The row's sort key."""
        return keys.submit_sk(self.round_no, self.number)

    @property
    def label(self) -> str:
        """How logs and folders name the submission."""
        return f"{self.round_no:03}-{self.number}"

    @property
    def empty(self) -> bool:
        """Whether it is for no workers: the job was cancelled at this point."""
        return not self.workers

    @property
    def next_number(self) -> int:
        """The number of the round's next submission: this one's, where Slurm has refused it."""
        return self.number if self.refused else self.number + 1

    def sizes(self) -> list[int]:
        """Workers of each array."""
        return array_sizes(self.workers, self.array_size)

    @classmethod
    def from_row(cls, row: Row) -> SubmissionRow:
        """Read a row of the table."""
        round_no, number = str(row["sk"]).removeprefix(keys.SUBMIT_PREFIX).split("#")
        return SUBMISSION_FIELDS.read(row, round_no=int(round_no), number=int(number))


SUBMISSION_FIELDS = RowFields(
    SubmissionRow,
    names={"intent_ms": "intent", "submitted_ms": "submitted", "requested": "asked"},
    read={"state": SubmitState, "slurm_job_ids": tuple},
    beside=("round_no", "number"),
)


def job_name(job_id: JobId, submission: SubmissionRow, part: int = 0) -> str:
    """The Slurm job name of a submission's array `part`; the array is found by it."""
    return f"{job_id}.{submission.label}.{submission.token}{f'.{part}' if part else ''}"


def array_sizes(workers: int, most: int) -> list[int]:
    """The sizes of the fewest arrays that hold the workers, with at most `most` in each."""
    whole, rest = divmod(workers, most)
    return [most] * whole + ([rest] if rest else [])


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One line of the audit log."""

    at_ms: int
    actor: str
    action: str
    detail: dict[str, Value] = field(default_factory=dict)
    #: Its sort key: a reader continues after it.
    sk: str = ""

    @classmethod
    def from_row(cls, row: Row, sk: str) -> AuditEvent:
        """Read a row of the table."""
        detail = cast("dict[str, Value]", row["detail"])
        return cls(int(sk.split("#")[0]), str(row["actor"]), str(row["action"]), detail, sk)

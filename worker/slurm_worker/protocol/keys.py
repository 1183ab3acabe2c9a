"""Every table key, id and state name, defined once and used by both sides.

A task's id is ``<round>-<sequence>`` (``000-00000012``); its row lives in one of the
job's task shards, whose number is fixed when the job is created, so that the shard of
a task never changes. See ``docs/architecture.md`` for the table and the S3 layout.
"""

from __future__ import annotations

import re
import secrets
from enum import Enum
from typing import NewType

from slurm_worker.errors import UserError

JobId = NewType("JobId", str)
TaskId = NewType("TaskId", str)

JOB_ID_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_MERGE = re.compile(r"(.+)\.merge-[0-9a-f]{8}")
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
S3_URI_PATTERN = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?")

META = "META"
LIMIT_SK = "SLOT#0"  #: sort key of a rate limit's row
#: The most tasks of a round; higher numbers are for the halves of bisected tasks.
MAX_TASKS = 10_000_000
MAX_SHARDS = 256  #: the most shards that a job's task rows are spread over
#: Added to a task's number; multiples of every number of shards, so that the halves are in
#: the shard of the whole, where workers still look.
_HALVES = (2 * MAX_TASKS, 4 * MAX_TASKS)
#: A segment's number is its draft's times this, plus its place among the draft's segments. So a
#: row names its object, for workers of earlier releases too. Segments that an earlier release
#: planned belong to draft 0.
_PLACES = 10**8
JOBS_PK = "JOBS"  #: partition of the register of jobs
ROUND_PREFIX = "ROUND#"
SUBMIT_PREFIX = "SUBMIT#"


class JobState(str, Enum):
    """The state in a job's META row."""

    PLANNING = "planning"  #: task rows are still being written; workers wait
    OPEN = "open"  #: every task row exists; workers may lease


class RoundState(str, Enum):
    """The state in a round's row."""

    PLANNING = "planning"  #: its task rows are still being written
    OPEN = "open"  #: every task row exists


class TaskState(str, Enum):
    """The life of a task row."""

    READY = "ready"  #: claimable, once ``not_before`` has passed
    LEASED = "leased"  #: held by ``owner`` until ``lease_until``
    DONE = "done"  #: its ``.done`` marker exists
    FAILED = "failed"  #: every attempt failed; ``error_class`` says why
    QUARANTINED = "quarantined"  #: it lost its lease too often; it may kill its workers

    @property
    def terminal(self) -> bool:
        """Whether only a retry can change the task again."""
        return self in (TaskState.DONE, TaskState.FAILED, TaskState.QUARANTINED)


class SubmitState(str, Enum):
    """The life of a submission row."""

    INTENT = "intent"  #: written before ``sbatch``; Slurm may or may not have the array
    SUBMITTED = "submitted"  #: the array's Slurm job id is known


def check_job_id(value: str, field: str = "job_id") -> JobId:
    """Return `value` as a job id.

    Raises:
        UserError: if it does not match the pattern for ids.
    """
    if not JOB_ID_PATTERN.fullmatch(value):
        raise UserError(
            f"{field}: {value!r} is not a job id; use 1 to 63 of a-z 0-9 . _ - "
            "and start with a letter or digit"
        )
    return JobId(value)


def split_s3_uri(uri: str, field: str = "uri") -> tuple[str, str]:
    """Return (bucket, key) of an ``s3://bucket/key`` address; the key may be empty.

    Raises:
        UserError: if `uri` is no such address.
    """
    match = S3_URI_PATTERN.fullmatch(uri)
    if not match:
        raise UserError(f"{field}: {uri!r} is not an S3 address; write s3://bucket/prefix")
    return match.group(1), (match.group(2) or "").strip("/")


def job_pk(job: JobId) -> str:
    """Partition of the job's META, ROUND and SUBMIT rows."""
    return f"JOB#{job}"


def round_sk(round_no: int) -> str:
    """Sort key of a round's row."""
    return f"{ROUND_PREFIX}{round_no:03}"


def submit_sk(round_no: int, number: int) -> str:
    """Sort key of the `number`-th submission of a round."""
    return f"{SUBMIT_PREFIX}{round_no:03}#{number}"


def register_sk(created_ms: int, job: JobId) -> str:
    """Sort key of a job in the register: by age."""
    return f"{created_ms:013}#{job}"


def event_pk(job: JobId) -> str:
    """Partition of the job's audit events."""
    return f"JOB#{job}#EVENT#00"


def event_once_sk(name: str) -> str:
    """Sort key, among the job's rows, of an audit event that is recorded once."""
    return f"EVENT#{name}"


def stages_sk(generation: int) -> str:
    """Sort key, among the job's rows, of what is left of each shard in a generation."""
    return f"STAGES#{generation}"


def cursor_sk(shard: int) -> str:
    """Sort key, among the job's rows, of a shard's cursor."""
    return f"MARK#{shard:03}"


def task_pk(job: JobId, shard: int) -> str:
    """Partition of one shard of the job's task rows."""
    return f"JOB#{job}#TASK#{shard:03}"


def task_sk(round_no: int, sequence: int) -> str:
    """Sort key of a task's row."""
    return f"{round_no:03}#{sequence:08}"


def new_draft() -> int:
    """A random number of 18 digits for a draft of a round; no other draft has it."""
    return 10**17 + secrets.randbelow(9 * 10**17)


def segment_number(draft: int, place: int) -> int:
    """The number of a draft's segment."""
    return draft * _PLACES + place


def draft_of(segment: int) -> int:
    """The draft that a segment belongs to."""
    return segment // _PLACES


def before_round(round_no: int) -> str:
    """A sort key before those of a round's tasks, and after those of earlier rounds."""
    return f"{round_no:03}#"


def task_id(round_no: int, sequence: int) -> TaskId:
    """The task's id, as S3 keys and logs have it."""
    return TaskId(f"{round_no:03}-{sequence:08}")


def parse_task_id(task: str) -> tuple[int, int]:
    """Return (round, sequence) of a task's id, or of the sort key of its row."""
    round_no, sequence = task.replace("#", "-").split("-")
    return int(round_no), int(sequence)


def halves(task: TaskId) -> tuple[TaskId, TaskId] | None:
    """The ids of the two halves of a bisected task; None for a task that is a half."""
    round_no, sequence = parse_task_id(task)
    if sequence >= MAX_TASKS:
        return None
    first, second = (task_id(round_no, sequence + offset) for offset in _HALVES)
    return first, second


def merge_job_id(job: JobId, inputs: str) -> JobId:
    """The job that merges another job's parts on the nodes, from inputs of this digest."""
    return check_job_id(f"{job}.merge-{inputs[:8]}", "job_id")


def merged_job(job: JobId) -> JobId | None:
    """The job whose parts this one merges; None for any other job."""
    match = _MERGE.fullmatch(job)
    return None if match is None else JobId(match.group(1))


def shard_of(sequence: int, shards: int) -> int:
    """The shard that holds a task's row."""
    return sequence % shards


def shard_count(workers: int) -> int:
    """Shards for a job with this many worker processes: a power of two between 8 and 256.

    One partition serves 1,000 writes a second; 16 workers share one shard, which keeps
    a mass start under a tenth of that (docs/architecture.md, "Shards"). `_HALVES` are
    multiples of no larger power of two.
    """
    return min(MAX_SHARDS, max(8, 1 << max(0, (workers // 16 - 1).bit_length())))


def limit_pk(scope: str, name: str) -> str:
    """Partition of a rate limit."""
    return f"LIMIT#{scope}#{name}"

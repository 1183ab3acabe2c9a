"""Every table key, state name and S3 path, defined once and used by both sides.

A task's id is ``<round>-<sequence>`` (``000-00000012``); its row lives in one of the
job's task shards, whose number is fixed when the job is created, so that the shard of
a task never changes. See ``docs/architecture.md`` for the table and the S3 layout.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from enum import Enum
from typing import NewType

from slurm_worker.errors import UserError

JobId = NewType("JobId", str)
TaskId = NewType("TaskId", str)

JOB_ID_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_MERGE = re.compile(r"(.+)\.merge-[0-9a-f]{8}")
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_VERSION = re.compile(r"([0-9]{6,})-([0-9a-f]{16})-[0-9a-z]+")
#: How Hive, Spark and Arrow write the folder of a partition whose value is null.
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
S3_URI_PATTERN = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?")

META = "META"
#: Tasks that one round may have; the numbers above are for the halves of bisected tasks.
MAX_TASKS = 10_000_000
#: The most shards that a job's task rows are spread over.
MAX_SHARDS = 256
#: Added to a task's number; multiples of every number of shards, so that the halves are in
#: the shard of the whole, where nobody has looked for the last time yet.
_HALVES = (2 * MAX_TASKS, 4 * MAX_TASKS)
#: A segment's number is its draft's times this, plus its place among the draft's segments, so
#: that whoever knows a row knows the object, workers of earlier releases too. Drafts have 18
#: digits; the segments of what an earlier release planned are those of draft 0.
_PLACES = 10**8
_DRAFTS = (10**17, 10**18)
#: Partition of the register of jobs.
JOBS_PK = "JOBS"
ROUND_PREFIX = "ROUND#"
SUBMIT_PREFIX = "SUBMIT#"
ONCE_PREFIX = "EVENT#"
MARK_PREFIX = "MARK#"


class JobState(str, Enum):
    """What a job's META row says of it."""

    PLANNING = "planning"  #: task rows are still being written; workers wait
    OPEN = "open"  #: every task row exists; workers may lease


class RoundState(str, Enum):
    """What a round's row says of it."""

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
        """Whether only a retry can move the task again."""
        return self in (TaskState.DONE, TaskState.FAILED, TaskState.QUARANTINED)


class SubmitState(str, Enum):
    """The life of a submission row."""

    INTENT = "intent"  #: written before ``sbatch``; Slurm may or may not have the array
    SUBMITTED = "submitted"  #: the array's Slurm job id is known


def check_job_id(value: str, field: str = "job_id") -> JobId:
    """Return `value` as a job id.

    Raises:
        UserError: if it does not match the one pattern for ids.
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
        UserError: if `uri` is not such an address.
    """
    match = S3_URI_PATTERN.fullmatch(uri)
    if not match:
        raise UserError(f"{field}: {uri!r} is not an S3 address; write s3://bucket/prefix")
    return match.group(1), (match.group(2) or "").strip("/")


# --- table keys ---------------------------------------------------------------


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


def once_sk(name: str) -> str:
    """Sort key, among the job's rows, of an audit event that is told but once."""
    return f"{ONCE_PREFIX}{name}"


def stages_sk(generation: int) -> str:
    """Sort key, among the job's rows, of what is left of each shard in a generation."""
    return f"STAGES#{generation}"


def mark_sk(shard: int) -> str:
    """Sort key, among the job's rows, of how far a shard is worked off."""
    return f"{MARK_PREFIX}{shard:03}"


def task_pk(job: JobId, shard: int) -> str:
    """Partition of one shard of the job's task rows."""
    return f"JOB#{job}#TASK#{shard:03}"


def task_sk(round_no: int, sequence: int) -> str:
    """Sort key of a task's row."""
    return f"{round_no:03}#{sequence:08}"


def new_draft() -> int:
    """A number for a draft of a round that no other draft has."""
    least, above = _DRAFTS
    return least + secrets.randbelow(above - least)


def segment_number(draft: int, place: int) -> int:
    """The number of a draft's segment."""
    return draft * _PLACES + place


def draft_of(segment: int) -> int:
    """The draft that a segment belongs to."""
    return segment // _PLACES


def before_round(round_no: int) -> str:
    """A sort key before those of a round's tasks, and behind those of the rounds before."""
    return f"{round_no:03}#"


def task_id(round_no: int, sequence: int) -> TaskId:
    """The task's id, as it stands in S3 keys and logs."""
    return TaskId(f"{round_no:03}-{sequence:08}")


def parse_task_id(task: str) -> tuple[int, int]:
    """Return (round, sequence) of a task id."""
    round_no, sequence = task.split("-")
    return int(round_no), int(sequence)


def halves(task: TaskId) -> tuple[TaskId, TaskId] | None:
    """The ids of the two tasks that a task is bisected into; None for one that is a half."""
    round_no, sequence = parse_task_id(task)
    if sequence >= MAX_TASKS:
        return None
    first, second = (task_id(round_no, sequence + each) for each in _HALVES)
    return first, second


def merge_job_id(job: JobId, inputs: str) -> JobId:
    """The job that merges another's parts on the nodes, from inputs of a digest."""
    return check_job_id(f"{job}.merge-{inputs[:8]}", "job_id")


def merged_job(job: JobId) -> JobId | None:
    """The job whose parts this one merges; None for any other job."""
    match = _MERGE.fullmatch(job)
    return None if match is None else JobId(match.group(1))


def parse_task_sk(sk: str) -> tuple[int, int]:
    """Return (round, sequence) of the sort key of a task's row."""
    round_no, sequence = sk.split("#")
    return int(round_no), int(sequence)


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


def limit_sk() -> str:
    """Sort key of a rate limit's row."""
    return "SLOT#0"


def version_name(number: int, inputs: str, unique: str) -> str:
    """The name of one aggregation's folders.

    Args:
        number: the number of the manifest that it is made for.
        inputs: digest of all that goes into the dataset.
        unique: what no other aggregation has, of 0-9 and a-z.
    """
    return f"{number:06}-{inputs[:16]}-{unique}"


def parse_version(name: str) -> tuple[int, str] | None:
    """Return (number, first 16 digits of the inputs' digest) of a version's name.

    None of any other name: older manifests name their versions by the inputs alone.
    """
    match = _VERSION.fullmatch(name)
    return None if match is None else (int(match.group(1)), match.group(2))


# --- S3 keys ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JobPaths:
    """The S3 keys of one job, all under ``<prefix>/jobs/<job>/``.

    Args:
        prefix: the site's key prefix inside the bucket, without slashes at its ends.
        job: the job's id.
    """

    prefix: str
    job: JobId

    @property
    def root(self) -> str:
        """The folder of everything of the job, ending in a slash."""
        return f"{self.prefix}/jobs/{self.job}/".lstrip("/")

    @property
    def config_folder(self) -> str:
        """The folder of every configuration that the job had."""
        return f"{self.root}config/"

    def config(self, digest: str) -> str:
        """The resolved configuration that workers read, named by its digest."""
        return f"{self.config_folder}{digest}.json"

    def code(self, digest: str) -> str:
        """The handler's code, named by its digest."""
        return f"{self.root}code/{digest}.zip"

    def inline(self, digest: str) -> str:
        """Items, or the keys of a retry's items, that were handed over instead of a file."""
        return f"{self.root}given/{digest}.jsonl"

    @property
    def segments_folder(self) -> str:
        """The folder with a folder of segments for each round."""
        return f"{self.root}input/"

    def segments(self, round_no: int) -> str:
        """The folder of a round's segments."""
        return f"{self.segments_folder}{round_no:03}/"

    def segment(self, round_no: int, number: int) -> str:
        """One object of about 50,000 items."""
        return f"{self.segments(round_no)}segment-{number:05}"

    def segments_of(self, round_no: int, draft: int) -> str:
        """What the keys of a draft's segments begin with; those of others may, of draft 0."""
        return f"{self.segments(round_no)}segment-{draft or ''}"

    def draft_in(self, key: str) -> int | None:
        """The draft whose segment has this key; None for an object that is no segment."""
        number = key.rpartition("/segment-")[2]
        return draft_of(int(number)) if number.isdecimal() else None

    def title(self, round_no: int, draft: int) -> str:
        """What a draft is of, and what it comes to: written when it is whole."""
        return f"{self.titles(round_no)}{draft}.json"

    def titles(self, round_no: int) -> str:
        """The folder of the titles of a round's drafts."""
        return f"{self.root}drafts/{round_no:03}/"

    @property
    def parts(self) -> str:
        """The folder of parts, committed or not."""
        return f"{self.root}parts/"

    def part(self, task: TaskId, attempt: int, unique: str, suffix: str) -> str:
        """A part's key: unique to the attempt, so nothing is ever overwritten."""
        return f"{self.parts}{task}/a{attempt}-{unique}.{suffix}"

    @property
    def all_checkpoints(self) -> str:
        """The folder with a folder of checkpoints for each task."""
        return f"{self.root}checkpoints/"

    def checkpoints(self, task: TaskId) -> str:
        """The folder of a task's checkpoints."""
        return f"{self.all_checkpoints}{task}/"

    def checkpoint(self, task: TaskId, attempt: int, number: int) -> str:
        """An attempt's `number`-th checkpoint."""
        return f"{self.checkpoints(task)}a{attempt}-{number}"

    @property
    def done_folder(self) -> str:
        """The folder of commit markers."""
        return f"{self.root}done/"

    def done(self, task: TaskId) -> str:
        """The task's commit marker."""
        return f"{self.done_folder}{task}.done"

    @property
    def all_proposed(self) -> str:
        """The folder with a folder of proposed markers for each task."""
        return f"{self.root}proposed/"

    def proposed(self, task: TaskId, attempt: int) -> str:
        """An attempt's marker before the table has decided, in stores that can't."""
        return f"{self.all_proposed}{task}/a{attempt}"

    def probe(self, unique: str) -> str:
        """An object for trying out what the store can do."""
        return f"{self.root}probe/{unique}"

    @property
    def progress(self) -> str:
        """What is summed up of tasks that are done, so that nobody reads their rows again."""
        return f"{self.root}progress.json"

    def shard_progress(self, shard: int) -> str:
        """The same of one shard, as workers have summed it up."""
        return f"{self.root}progress/{shard:03}.json"

    @property
    def anomalies(self) -> str:
        """What those who look for anomalies remember between two looks."""
        return f"{self.root}anomalies.json"

    @property
    def logs(self) -> str:
        """Under which the workers' logs are."""
        return f"{self.root}logs/"

    def logs_of(self, round_no: int) -> str:
        """Under which the logs of a round's workers are: submissions are named by round."""
        return f"{self.logs}{round_no:03}-"

    def log(self, submission: str, worker: str, number: int) -> str:
        """A chunk of one worker's JSON log."""
        return f"{self.logs}{submission}/{worker}-{number:03}.jsonl.gz"

    @property
    def dataset(self) -> str:
        """The folder of the published Parquet files."""
        return f"{self.root}dataset/"

    @property
    def manifest(self) -> str:
        """The object whose presence publishes the dataset."""
        return f"{self.dataset}_manifest.json"

    @property
    def errors(self) -> str:
        """The folder of the Parquet files of items that failed."""
        return f"{self.root}errors/"

    def dataset_of(self, version: str) -> str:
        """The folder of a version's Parquet files."""
        return f"{self.dataset}{version}/"

    def errors_of(self, version: str) -> str:
        """The folder of a version's Parquet files of items that failed."""
        return f"{self.errors}{version}/"

"""The S3 keys of a job."""

from __future__ import annotations

import re

from slurm_worker.protocol.keys import JobId, TaskId, draft_of

_VERSION = re.compile(r"([0-9]{6,})-([0-9a-f]{16})-[0-9a-z]+")
#: How Hive, Spark and Arrow write the folder of a partition whose value is null.
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


def version_name(number: int, inputs: str, unique: str) -> str:
    """The name of one aggregation's folders.

    It has the number of the manifest, a digest of all that goes into the dataset, and an id of
    0-9 and a-z that no other aggregation has.
    """
    return f"{number:06}-{inputs[:16]}-{unique}"


def parse_version(name: str) -> tuple[int, str] | None:
    """Return (number, first 16 digits of the inputs' digest) of a version's name.

    None for any other name: older manifests name their versions by the inputs alone.
    """
    match = _VERSION.fullmatch(name)
    return None if match is None else (int(match.group(1)), match.group(2))


def conditional_put_key(prefix: str) -> str:
    """The site's object that tells whether the store heeds ``If-None-Match``; it is empty."""
    return f"{prefix}/conditional-put".lstrip("/")


class JobPaths:
    """The S3 keys of one job; the site's key prefix has no slashes at its ends."""

    def __init__(self, prefix: str, job: JobId) -> None:
        self.prefix = prefix
        self.job = job
        root = f"{prefix}/jobs/{job}/".lstrip("/")
        self.root = root  #: the folder of everything of the job; folders end in a slash
        self.config_folder = f"{root}config/"  #: the job's configurations
        self.segments_folder = f"{root}input/"  #: a folder of segments for each round
        self.parts = f"{root}parts/"  #: parts, committed or not
        self.all_checkpoints = f"{root}checkpoints/"  #: a folder of checkpoints for each task
        self.done_folder = f"{root}done/"  #: commit markers
        self.all_proposed = f"{root}proposed/"  #: a folder of proposed markers for each task
        self.logs = f"{root}logs/"  #: the workers' logs
        self.dataset = f"{root}dataset/"  #: the published Parquet files
        self.errors = f"{root}errors/"  #: the Parquet files of items that failed
        #: The object whose presence publishes the dataset.
        self.manifest = f"{self.dataset}_manifest.json"
        #: The totals of done tasks, whose rows are not read again.
        self.progress = f"{root}progress.json"
        #: What the anomaly monitor remembers between two status queries.
        self.anomalies = f"{root}anomalies.json"

    def config(self, digest: str) -> str:
        """The resolved configuration that workers read, named by its digest."""
        return f"{self.config_folder}{digest}.json"

    def code(self, digest: str) -> str:
        """The handler's code, named by its digest."""
        return f"{self.root}code/{digest}.zip"

    def inline(self, digest: str) -> str:
        """Items, or the keys of a retry's items, that were passed instead of a file."""
        return f"{self.root}given/{digest}.jsonl"

    def segments(self, round_no: int) -> str:
        """The folder of a round's segments."""
        return f"{self.segments_folder}{round_no:03}/"

    def segment(self, round_no: int, number: int) -> str:
        """One object of about 50,000 items."""
        return f"{self.segments(round_no)}segment-{number:05}"

    def segments_of(self, round_no: int, draft: int) -> str:
        """The prefix of the keys of a draft's segments; with draft 0, of every draft's."""
        return f"{self.segments(round_no)}segment-{draft or ''}"

    def draft_in(self, key: str) -> int | None:
        """The draft whose segment has this key; None for another object."""
        number = key.rpartition("/segment-")[2]
        return draft_of(int(number)) if number.isdecimal() else None

    def draft_summary(self, round_no: int, draft: int) -> str:
        """A draft's description and totals: written when it is complete."""
        return f"{self.draft_summaries(round_no)}{draft}.json"

    def draft_files(self, round_no: int, draft: int) -> str:
        """The list of the files that a draft was made from."""
        return f"{self.draft_summaries(round_no)}{draft}.files.jsonl.gz"

    def draft_summaries(self, round_no: int) -> str:
        """The folder of the summaries of a round's drafts."""
        return f"{self.root}drafts/{round_no:03}/"

    def part(self, task: TaskId, attempt: int, unique: str, suffix: str) -> str:
        """A part's key: unique to the attempt, so nothing is ever overwritten."""
        return f"{self.parts}{task}/a{attempt}-{unique}.{suffix}"

    def checkpoints(self, task: TaskId) -> str:
        """The folder of a task's checkpoints."""
        return f"{self.all_checkpoints}{task}/"

    def checkpoint(self, task: TaskId, attempt: int, number: int) -> str:
        """An attempt's `number`-th checkpoint."""
        return f"{self.checkpoints(task)}a{attempt}-{number}"

    def done(self, task: TaskId) -> str:
        """The task's commit marker."""
        return f"{self.done_folder}{task}.done"

    def proposed(self, task: TaskId, attempt: int) -> str:
        """An attempt's marker before the table has decided, for stores that can't decide."""
        return f"{self.all_proposed}{task}/a{attempt}"

    def probe(self, unique: str) -> str:
        """An object for tests of what the store can do."""
        return f"{self.root}probe/{unique}"

    def shard_progress(self, shard: int) -> str:
        """The totals of one shard, which workers update."""
        return f"{self.root}progress/{shard:03}.json"

    def logs_of(self, round_no: int) -> str:
        """The prefix of the logs of a round's workers: submissions are named by round."""
        return f"{self.logs}{round_no:03}-"

    def log(self, submission: str, worker: str, number: int) -> str:
        """A chunk of one worker's JSON log."""
        return f"{self.logs}{submission}/{worker}-{number:03}.jsonl.gz"

    def dataset_of(self, version: str) -> str:
        """The folder of a version's Parquet files."""
        return f"{self.dataset}{version}/"

    def errors_of(self, version: str) -> str:
        """The folder of a version's Parquet files of items that failed."""
        return f"{self.errors}{version}/"

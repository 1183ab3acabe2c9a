"""The workers' logs: JSON lines on S3, and what Slurm wrote for those that could not ship theirs.

A worker ships its log when a chunk is full and when it ends; one that was killed has shipped
nothing since its last chunk, and its lines are in the array's output file on the cluster.
Requests: a list per thousand chunks, a GET per chunk; one command for an output file.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from airflow_slurm_provider.coordinator.failures import normalise
from airflow_slurm_provider.coordinator.progress import latest
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.submit import job_name
from slurm_worker.errors import UserError
from slurm_worker.keys import JobId

_SEVERE = ("warning", "error", "critical")
#: Events that tell of a failed item, whatever their level.
_FAILURES = ("item failed", "task failed")
#: Where failures are looked for, for a log that is about more than them.
_FIRST_CHUNKS = 20
#: Failures among which other kinds are looked for.
_FIRST_FAILURES = 1_000
_ELEMENT = re.compile(r"(\d+)(?:_(\d{1,9}))?")
_HEAD = ("timestamp", "level", "event", "job", "submission", "slurm", "process", "worker")
_TRACEBACK = "exception"
#: How a worker begins what it tells a person, on stderr.
_OWN = "slurm-worker: "


@dataclass(frozen=True, slots=True)
class Selection:
    """Which lines.

    Args:
        task: of this task only.
        worker: of this worker only, or of those of an element or array: ``1234_7``.
        errors: of failures, warnings and errors only.
    """

    task: str = ""
    worker: str = ""
    errors: bool = False

    def wants(self, line: dict[str, Any]) -> bool:
        """Whether a line is asked for; the worker is told from the chunk's name."""
        if self.task and line.get("task") != self.task:
            return False
        return not self.errors or line.get("level") in _SEVERE or line.get("event") in _FAILURES


def read_logs(services: Services, job_id: JobId, selection: Selection) -> Iterator[dict[str, Any]]:
    """The shipped lines, worker by worker, oldest first.

    Raises:
        UserError: if there is no such job.
    """
    services.jobs(job_id).get()
    for key in services.objects.list(services.paths(job_id).logs):
        worker = key.rsplit("/", 1)[1]
        if selection.worker and not _is_of(worker, selection.worker):
            continue
        for line in _lines(services.objects.get(key) or b""):
            if selection.wants(line):
                yield line


def read_script(services: Services, job_id: JobId) -> str:
    """The batch script of the job's latest array, from the cluster; empty where there is none.

    Raises:
        ServiceError: if the cluster can't be reached.
    """
    submission = latest(services.jobs(job_id).submissions())
    if submission is None or not submission.slurm_job_ids:
        return ""
    return services.slurm.script(job_name(job_id, submission), job_id)


def read_output(services: Services, job_id: JobId, element: str, lines: int = 50) -> str:
    """The end of what an array's element wrote, from the cluster.

    Args:
        services: the edges.
        job_id: the job.
        element: such as ``1234_7``.
        lines: at most so many.

    Raises:
        UserError: if no array of the job has this id.
        ServiceError: if the cluster can't be reached.
    """
    match = _ELEMENT.fullmatch(element)
    if match is None:
        raise UserError(f"--worker: {element!r} is no element of an array; write 1234_7")
    array, number = match.groups("0")
    for submission in services.jobs(job_id).submissions():
        if array in submission.slurm_job_ids:
            name = job_name(job_id, submission, submission.slurm_job_ids.index(array))
            return services.slurm.output(name, job_id, int(number), lines)
    raise UserError(f"--worker: {element!r} is no element of an array of {job_id!r}")


def first_failures(services: Services, job_id: JobId, most: int = 5) -> list[str]:
    """What workers said of the last round's first failures, one of each kind.

    Looks into a few chunks of their logs.
    """
    round_no = max((each.number for each in services.jobs(job_id).rounds()), default=0)
    keys = services.objects.list(services.paths(job_id).logs_of(round_no))
    chunks = itertools.islice(keys, _FIRST_CHUNKS)
    lines = (line for key in chunks for line in _lines(services.objects.get(key) or b""))
    failures = (line for line in lines if line.get("event") in _FAILURES)
    kinds: dict[tuple[str, str], str] = {}
    for line in itertools.islice(failures, _FIRST_FAILURES):
        kind = (str(line.get("error_class", "")), normalise(str(line.get("error", ""))))
        kinds.setdefault(kind, as_text(line))
        if len(kinds) == most:
            break
    return list(kinds.values())


def last_words(output: str) -> str:
    """What the end of a worker's output tells a person: its own complaint, else all of it."""
    lines = output.splitlines()
    own = [each for each in lines if each.startswith(_OWN)]
    return own[-1] if own else "\n".join(map(_readable, lines))


def _readable(line: str) -> str:
    try:
        found = json.loads(line)
    except ValueError:
        return line
    return as_text(found) if isinstance(found, dict) and "event" in found else line


def as_text(line: dict[str, Any]) -> str:
    """A line as a person reads it, with its traceback, if any, below it."""
    ids = " ".join(str(line[name]) for name in ("worker", "task") if line.get(name))
    rest = " ".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}"
        for name, value in line.items()
        if name not in (*_HEAD, "task", "attempt", _TRACEBACK)
    )
    level = str(line.get("level", "")).upper()
    head = f"{line.get('timestamp', '')} {level:7} {ids} {line.get('event', '')} {rest}".rstrip()
    return "\n    ".join([head, *str(line.get(_TRACEBACK, "")).splitlines()])


def _is_of(worker: str, asked: str) -> bool:
    """Whether a worker's id begins with a whole id: ``1234_7`` is not of ``1234_70``."""
    return worker.startswith(asked) and not worker[len(asked) :][:1].isalnum()


def _lines(chunk: bytes) -> Iterator[dict[str, Any]]:
    try:
        text = gzip.decompress(chunk).decode(errors="replace")
    except (OSError, EOFError, zlib.error):
        return
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found

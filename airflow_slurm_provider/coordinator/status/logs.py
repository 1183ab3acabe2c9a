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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.arrays import arrays_of
from airflow_slurm_provider.coordinator.status.dead_workers import read_job_records
from airflow_slurm_provider.coordinator.status.failures import normalise
from airflow_slurm_provider.slurm.exit_codes import reason_of
from slurm_worker.errors import UserError, split_place
from slurm_worker.printable import printable
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.ports import ITEM_FAILED, TASK_FAILED

_SEVERE = ("warning", "error", "critical")
#: Events that report a failed item, at any level.
_FAILURES = (ITEM_FAILED, TASK_FAILED)
#: Where failures are looked for, for a log that is about more than them.
_FIRST_CHUNKS = 20
#: So many chunks in a row with known kinds of failures alone are enough.
_OLD_CHUNKS = 3
_ELEMENT = re.compile(r"(\d+)(?:_(\d{1,9}))?")
_HEAD = ("timestamp", "level", "event", "job", "submission", "slurm", "process", "worker")
_TRACEBACK = "exception"
#: The event of the lines of `read_ends`, and how many of them have the worker's own words.
WORKER_ENDED = "worker ended"
_OUTPUTS_READ = 3
#: The prefix of a worker's lines for people, on stderr.
_OWN = "slurm-worker: "


@dataclass(frozen=True, slots=True)
class Selection:
    """Which lines."""

    task: str = ""  #: of this task only
    worker: str = ""  #: of this worker only, or of those of an element or array: ``1234_7``
    errors: bool = False  #: of failures, warnings and errors only

    def wants(self, line: dict[str, Any]) -> bool:
        """Whether a line is selected; the worker is known from the chunk's name."""
        severe = line.get("level") in _SEVERE or line.get("event") in _FAILURES
        return self.task in ("", line.get("task")) and (severe or not self.errors)


def read_logs(services: Services, job_id: JobId, selection: Selection) -> Iterator[dict[str, Any]]:
    """The shipped lines by worker, oldest first; raises a UserError if there is no such job."""
    services.jobs(job_id).get()
    for key in services.objects.list(services.paths(job_id).logs):
        worker = key.rsplit("/", 1)[1]
        if selection.worker and not _is_of(worker, selection.worker):
            continue
        for line in _lines(services.objects.get(key) or b""):
            if selection.wants(line):
                yield line


def read_ends(services: Services, job_id: JobId, selection: Selection) -> Iterator[dict[str, Any]]:
    """A line for each worker whose exit code says why it ended; such a worker may ship no log.

    The last words of the first few are added. Requests: a ``sacct``, and a command for each of
    these.

    Raises:
        ServiceError: if the accounting or the cluster can't be reached.
    """
    records = (record for record in read_job_records(services, job_id) if record.exit_code)
    asked: set[tuple[str, int]] = set()
    for record in records:
        worker, reason = record.worker.rstrip("-"), reason_of(record.exit_code)
        wanted = not selection.worker or _is_of(worker, selection.worker)
        if not reason or not wanted:
            continue
        line = {
            "level": "error",
            "event": WORKER_ENDED,
            "job": job_id,
            "slurm": {"node": record.node},
            "worker": worker,
            "exit_code": record.exit_code,
            "reason": reason,
        }
        element = (record.array, record.element)
        if element not in asked and len(asked) < _OUTPUTS_READ:
            asked.add(element)
            line["error"] = _own_words(read_output(services, job_id, "{}_{}".format(*element)))
        yield line


def _own_words(output: str) -> str:
    """A worker's last complaint in its output: a line for people, or the error of a log line."""
    for line in reversed(output.splitlines()):
        if line.startswith(_OWN):
            return line.removeprefix(_OWN)
        logged = _parsed(line)
        if logged.get("level") in _SEVERE and logged.get("error"):
            return str(logged["error"])
    return ""


def read_script(services: Services, job_id: JobId) -> str:
    """The batch script of the job's latest array, from the cluster; empty where there is none."""
    submissions = services.jobs(job_id).submissions()
    for submission in sorted(submissions, key=lambda row: (row.round_no, row.number), reverse=True):
        if arrays := arrays_of(services, job_id, [submission]):
            return services.slurm.script(arrays[0].name, job_id)
    return ""


def read_output(services: Services, job_id: JobId, element: str, lines: int = 50) -> str:
    """The last lines that an array's element, such as ``1234_7``, wrote; from the cluster.

    Raises:
        UserError: if no array of the job has this id.
        ServiceError: if the cluster can't be reached.
    """
    match = _ELEMENT.fullmatch(element)
    if match is None:
        raise UserError(f"--worker: {element!r} is not an array element; write 1234_7")
    array, number = match.groups("0")
    # Slurm may have given one number twice: the later array is meant.
    for key in reversed(arrays_of(services, job_id, services.jobs(job_id).submissions())):
        if key.slurm_job_id == array:
            return services.slurm.output(key.name, job_id, int(number), lines)
    raise UserError(f"--worker: {element!r} is not an element of an array of {job_id!r}")


def first_failures(services: Services, job_id: JobId, most: int = 5) -> list[str]:
    """The log lines of the last round's first failures, one of each kind.

    Reads on in their logs as long as one of a few chunks has something new.
    """
    round_no = max((round_row.number for round_row in services.jobs(job_id).rounds()), default=0)
    keys = services.objects.list(services.paths(job_id).logs_of(round_no))
    kinds: dict[tuple[str, str, str], str] = {}
    old = 0
    for key in itertools.islice(keys, _FIRST_CHUNKS):
        before = len(kinds)
        for line in _lines(services.objects.get(key) or b""):
            if line.get("event") in _FAILURES and len(kinds) < most:
                message, place = _message_of(line)
                kind = (str(line.get("error_class", "")), normalise(message), place)
                kinds.setdefault(kind, as_text(line))
        old = old + 1 if kinds and len(kinds) == before else 0
        if len(kinds) == most or old == _OLD_CHUNKS:
            break
    return list(kinds.values())


def last_words(output: str) -> str:
    """The end of a worker's output, as far as it helps a person.

    After its own first complaint, all except its log's lines; without a complaint all of it.
    """
    lines = output.removesuffix("\n").split("\n")
    first = next((n for n, line in enumerate(lines) if line.startswith(_OWN)), None)
    if first is None:
        return "\n".join(as_text(found) if (found := _parsed(line)) else line for line in lines)
    return "\n".join(line for line in lines[first:] if not _parsed(line))


def without_repeats(lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines, each place of the handler's code with the first of its tracebacks alone."""
    shown: set[str] = set()
    for line in lines:
        _, place = _message_of(line)
        if place in shown:
            yield {name: value for name, value in line.items() if name != _TRACEBACK}
            continue
        if place and _TRACEBACK in line:
            shown.add(place)
        yield line


def _message_of(line: dict[str, Any]) -> tuple[str, str]:
    """A line's error, and the place in the user's code that it has, in a field or in the text."""
    error = str(line.get("error", ""))
    return (error, str(line["place"])) if "place" in line else split_place(error)


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
    below = str(line.get(_TRACEBACK, "")).splitlines()
    return "\n    ".join(map(printable, [head, *below]))


def _is_of(worker: str, prefix: str) -> bool:
    """Whether a worker's id begins with a whole id: ``1234_7`` is not of ``1234_70``."""
    return worker.startswith(prefix) and not worker[len(prefix) :][:1].isalnum()


def _lines(chunk: bytes) -> Iterator[dict[str, Any]]:
    try:
        text = gzip.decompress(chunk).decode(errors="replace")
    except (OSError, EOFError, zlib.error):
        return
    # Only a line feed ends a line: JSON holds other line ends as they are.
    for line in text.split("\n"):
        if found := _parsed(line):
            yield found


def _parsed(line: str) -> dict[str, Any]:
    """A line of a log; empty where it is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

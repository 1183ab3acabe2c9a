"""JSON logs: one object a line, with job, task, attempt, worker and Slurm ids on each.

Lines go to stderr (Slurm's output file) and to a file on scratch, which is uploaded to S3 in
chunks: when one is full or ten minutes old, and when the worker ends. The user's own `logging`
calls become the same JSON lines. Structlog's context variables add the task and the attempt. Text
that looks like a secret is not written. A disk that is full loses lines, and never raises: what
the worker does about its disk matters more. Requests: six an hour for each worker process, more
where much is written.
"""

from __future__ import annotations

import gzip
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import structlog

from slurm_worker.printable import printable_json
from slurm_worker.protocol.ports import Logger

#: Stores a finished chunk: its number and its gzipped bytes.
Upload = Callable[[int, bytes], None]

_CHUNK_BYTES = 16 * 1024 * 1024
_CHUNK_S = 600.0
#: Disk use is bounded: so many chunks are kept while the store is away.
_MOST_WAITING = 4
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIAL", re.I)
_SHORTEST_SECRET = 6
_REDACTED = "[redacted]"
#: Forms of secrets, between the groups of a match that stay.
_SHAPES = tuple(
    re.compile(shape, re.IGNORECASE)
    for shape in (
        r"()\b(?:AKIA|ASIA)[0-9A-Z]{16}\b()",
        r"\b(authorization[\\\"']*\s*[:=]\s*[\\\"']*(?:bearer|basic)\s+)[^\s\"'\\]+()",
        r"\b((?:password|passwd|secret|token|api_?key)[\\\"']*\s*[:=]\s*[\\\"']*)[^\s\"'\\,&]+()",
        r"(\w+://[^\s/:@]*:)[^\s/@]+(@)",
    )
)
_QUIET = ("botocore", "boto3", "s3transfer", "urllib3")


class Logs:
    """The logs of one worker process; logging begins at once.

    `ids` are on every line; `folder` is on scratch. Where `upload` fails, nothing is lost, and the
    chunk is uploaded later. Lines also go to `stream`, stderr by default.
    """

    def __init__(
        self,
        ids: Mapping[str, object],
        folder: Path,
        upload: Upload,
        level: str = "INFO",
        stream: TextIO | None = None,
        chunk_bytes: int = _CHUNK_BYTES,
    ) -> None:
        self._ids = dict(ids)
        self._sink = _Sink(folder, upload, stream or sys.stderr, chunk_bytes)
        number = logging.getLevelName(level.upper())
        severity: int = number if isinstance(number, int) else logging.INFO
        processors: list[Any] = [
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            self._add_ids,
            structlog.processors.format_exc_info,
        ]
        renderer = structlog.processors.JSONRenderer(default=str, ensure_ascii=False)
        self.logger: Logger = structlog.wrap_logger(
            self._sink,
            processors=[*processors, renderer],
            wrapper_class=structlog.make_filtering_bound_logger(severity),
            cache_logger_on_first_use=True,
        )
        # For the user's own `logging` calls.
        self._handler = logging.StreamHandler(self._sink)
        self._handler.terminator = ""
        self._handler.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=processors,
                processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            )
        )
        root = logging.getLogger()
        root.addHandler(self._handler)
        root.setLevel(severity)
        for name in _QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)

    def close(self) -> None:
        """Upload what is left; no more lines go to the file."""
        logging.getLogger().removeHandler(self._handler)
        self._sink.close()

    def _add_ids(
        self, _logger: object, _method: str, line: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        # What a reader needs first comes first.
        head = {name: line.pop(name) for name in ("timestamp", "level", "event") if name in line}
        return {**head, **self._ids, **line}


class _Sink:
    """The stream and the file; both get whole lines only, without secrets."""

    def __init__(self, folder: Path, upload: Upload, stream: TextIO, chunk_bytes: int) -> None:
        self._folder, self._upload = folder, upload
        self._stream, self._chunk_bytes = stream, chunk_bytes
        self._secrets = _secrets(os.environ)
        self._lock = threading.Lock()
        self._number = self._size = 0
        #: Finished chunks that are not uploaded yet, oldest first.
        self._waiting: list[int] = []
        self._file = self._path(0).open("wb")
        self._begun = time.monotonic()
        self._disk_failed = False

    def write(self, line: str) -> None:
        line = printable_json(self._redact(line))
        with self._lock:
            self._tell(line)
            if self._file.closed:
                return
            try:
                self._keep(f"{line}\n".encode())
            except OSError as error:
                self._report(error)

    # What structlog calls.
    msg = debug = info = warning = error = critical = exception = fatal = write

    def close(self) -> None:
        with self._lock:
            if not self._file.closed:
                self._finish_chunk()

    def _tell(self, line: str) -> None:
        # Slurm's output file may be on a full disk, too.
        with suppress(OSError):
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def _keep(self, data: bytes) -> None:
        # Where the disk is full, this raises, and keeps nothing of the line. The size grows, so
        # that the next chunk begins, which may have room.
        self._size += len(data)
        # While the store is away, only full chunks are kept: their number is bounded.
        old = not self._waiting and time.monotonic() - self._begun >= _CHUNK_S
        try:
            self._file.write(data)
        finally:
            if old or self._size >= self._chunk_bytes:
                self._finish_chunk()
                self._number += 1
                self._size = 0
                self._file = self._path(self._number).open("wb")
                self._begun = time.monotonic()

    def _report(self, error: OSError) -> None:
        if not self._disk_failed:
            self._tell(f"slurm-worker: scratch {self._folder}: {error}; the uploaded log has gaps")
        self._disk_failed = True

    def _finish_chunk(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._report(error)
        self._waiting.append(self._number)
        while self._waiting:
            path = self._path(self._waiting[0])
            try:
                self._upload(self._waiting[0], gzip.compress(path.read_bytes()))
            except Exception as error:
                self._tell(f"slurm-worker: a chunk of the log is not uploaded yet: {error}")
                break
            path.unlink()
            self._waiting.pop(0)
        if len(self._waiting) > _MOST_WAITING:
            self._path(self._waiting.pop(0)).unlink()

    def _path(self, number: int) -> Path:
        return self._folder / f"worker-{number:03}.jsonl"

    def _redact(self, line: str) -> str:
        for secret in self._secrets:
            line = line.replace(secret, _REDACTED)
        for shape in _SHAPES:
            line = shape.sub(rf"\1{_REDACTED}\2", line)
        return line


def _secrets(environment: Mapping[str, str]) -> list[str]:
    found = {
        value
        for name, value in environment.items()
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET
    }
    # The longest first: one secret may be the beginning of another.
    return sorted(found, key=len, reverse=True)

"""Each line is JSON with all ids, no line holds a secret, and no line is lost to a chunk."""

from __future__ import annotations

import errno
import gzip
import io
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.contextvars import bound_contextvars

from slurm_worker.node import logging as log
from tests.unit.full_disk import full_disk

IDS = {"job": "job-1", "task": "", "attempt": 0, "worker": "w1", "slurm": {"array": "7"}}


class Uploads:
    def __init__(self) -> None:
        self.chunks: dict[int, bytes] = {}
        self.away = False

    def __call__(self, number: int, data: bytes) -> None:
        if self.away:
            raise OSError("the store is away")
        self.chunks[number] = gzip.decompress(data)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [
            json.loads(line)
            for _, data in sorted(self.chunks.items())
            for line in data.splitlines()
        ]


@pytest.fixture
def uploads() -> Uploads:
    return Uploads()


@pytest.fixture
def logs(tmp_path: Path, uploads: Uploads) -> Iterator[log.Logs]:
    started = log.Logs(IDS, tmp_path, uploads, stream=io.StringIO())
    yield started
    started.close()


def test_a_line_has_time_level_event_ids_and_fields(logs: log.Logs, uploads: Uploads) -> None:
    with bound_contextvars(task="000-00000001", attempt=2):
        logs.logger.info("task committed", rows=5)
    logs.close()
    (line,) = uploads.lines
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        **IDS,
        "level": "info",
        "event": "task committed",
        "task": "000-00000001",
        "attempt": 2,
        "rows": 5,
    }


def test_the_users_own_logging_becomes_the_same_lines(logs: log.Logs, uploads: Uploads) -> None:
    logging.getLogger("their.module").info("fetched %s of %d", "a", 3)
    logging.getLogger("their.module").debug("not this")
    logging.getLogger("botocore.hooks").info("nor this")
    logs.close()
    (line,) = uploads.lines
    assert (line["event"], line["job"], line["level"]) == ("fetched a of 3", "job-1", "info")


def test_a_lone_surrogate_is_logged_as_its_escape_and_loses_no_line(
    tmp_path: Path, uploads: Uploads
) -> None:
    with (tmp_path / "stderr").open("w", encoding="utf-8", errors="strict") as stream:
        logs = log.Logs(IDS, tmp_path, uploads, stream=stream)
        logs.logger.info("read é \udcff", file="a\ud83d.txt")
        logs.close()
    (first,) = uploads.lines
    assert (first["event"], first["file"]) == (r"read é \udcff", r"a\ud83d.txt")
    (line,) = (tmp_path / "stderr").read_text().splitlines()
    assert json.loads(line) == first


def test_a_line_has_the_task_of_its_thread(logs: log.Logs, uploads: Uploads) -> None:
    def work(task: str) -> None:
        with bound_contextvars(task=task):
            for _ in range(20):
                logs.logger.info(task)

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logs.close()
    assert len(uploads.lines) == 80
    assert all(line["task"] == line["event"] for line in uploads.lines)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("key AKIAIOSFODNN7EXAMPLE used", "AKIAIOSFODNN7EXAMPLE"),
        ("Authorization: Bearer abc.def.ghi", "abc.def.ghi"),
        ("password=hunter22 for bob", "hunter22"),
        ('{"api_key": "k-123456"}', "k-123456"),
        ("postgres://me:sesame@db/x", "sesame"),
        ("the value wJalrXUtnFEMI from the environment", "wJalrXUtnFEMI"),
    ],
)
def test_a_secret_is_written_nowhere(
    tmp_path: Path, uploads: Uploads, monkeypatch: pytest.MonkeyPatch, text: str, secret: str
) -> None:
    monkeypatch.setenv("THEIR_SECRET", "wJalrXUtnFEMI")
    stream = io.StringIO()
    logs = log.Logs(IDS, tmp_path, uploads, stream=stream)
    logs.logger.info(text, field=[text])
    logging.getLogger("theirs").warning("%s", text)
    try:
        raise ValueError(text)
    except ValueError as error:
        logs.logger.error("failed", exc_info=error)
    logs.close()
    assert secret not in stream.getvalue() + str(uploads.chunks)
    assert len(uploads.lines) == 3
    assert "ValueError" in uploads.lines[2]["exception"]


def test_chunks_are_uploaded_when_full_and_hold_every_line_once(
    tmp_path: Path, uploads: Uploads
) -> None:
    logs = log.Logs(IDS, tmp_path, uploads, stream=io.StringIO(), chunk_bytes=1000)
    for n in range(100):
        logs.logger.info("line", n=n)
    assert len(uploads.chunks) > 5
    logs.close()
    assert [line["n"] for line in uploads.lines] == list(range(100))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that decides when a chunk is old; the test moves it."""
    time = [100.0]
    monkeypatch.setattr("slurm_worker.node.logging.time.monotonic", lambda: time[0])
    return time


def test_lines_are_uploaded_while_the_worker_runs(
    tmp_path: Path, uploads: Uploads, now: list[float]
) -> None:
    logs = log.Logs(IDS, tmp_path, uploads, stream=io.StringIO())
    logs.logger.info("first")
    assert uploads.lines == []
    now[0] += 601
    logs.logger.info("second")
    assert [line["event"] for line in uploads.lines] == ["first", "second"]
    logs.logger.info("third")
    logs.close()
    assert [line["event"] for line in uploads.lines] == ["first", "second", "third"]


def test_while_the_store_is_away_only_full_chunks_are_kept(
    tmp_path: Path, uploads: Uploads, now: list[float]
) -> None:
    logs = log.Logs(IDS, tmp_path, uploads, stream=io.StringIO())
    uploads.away = True
    for number in range(20):
        now[0] += 601
        logs.logger.info("line", number=number)
    uploads.away = False
    logs.close()
    assert [line["number"] for line in uploads.lines] == list(range(20))


def test_a_store_that_is_away_gets_its_chunks_later(tmp_path: Path, uploads: Uploads) -> None:
    logs = log.Logs(IDS, tmp_path, uploads, stream=io.StringIO(), chunk_bytes=2000)
    uploads.away = True
    for n in range(30):
        logs.logger.info("line", n=n)
    uploads.away = False
    logs.close()
    assert [line["n"] for line in uploads.lines] == list(range(30))


def test_disk_use_is_bounded_while_the_store_is_away(tmp_path: Path, uploads: Uploads) -> None:
    logs = log.Logs(IDS, tmp_path, uploads, stream=io.StringIO(), chunk_bytes=1000)
    uploads.away = True
    for n in range(500):
        logs.logger.info("line", n=n)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 10_000
    logs.close()


def test_a_full_scratch_disk_stops_no_worker_and_loses_no_line_of_its_output(
    tmp_path: Path, uploads: Uploads
) -> None:
    output = io.StringIO()
    with full_disk():
        logs = log.Logs(IDS, tmp_path, uploads, stream=output)
        for n in range(200):
            logs.logger.info("line", n=n)
        logs.close()
    lines = [line for line in output.getvalue().splitlines() if line.startswith("{")]
    assert [json.loads(line)["n"] for line in lines] == list(range(200))
    assert output.getvalue().count("the uploaded log has gaps") == 1


def test_the_uploaded_log_goes_on_when_the_scratch_disk_has_room_again(
    tmp_path: Path, uploads: Uploads
) -> None:
    logs = log.Logs(IDS, tmp_path, uploads, stream=io.StringIO())
    with full_disk():
        for n in range(200):
            logs.logger.info("line", n=n)
    for n in range(200, 300):
        logs.logger.info("line", n=n)
    logs.close()
    numbers = [line["n"] for line in uploads.lines]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 0
    assert numbers[-100:] == list(range(200, 300))
    assert len(numbers) < 300, "what did not fit on the disk is lost"


class FullDisk(io.StringIO):
    """An output file that takes nothing."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, f"{text} does not fit")


def test_a_full_disk_under_the_output_stops_no_worker(tmp_path: Path, uploads: Uploads) -> None:
    logs = log.Logs(IDS, tmp_path, uploads, stream=FullDisk())
    for n in range(10):
        logs.logger.info("line", n=n)
    logs.close()
    assert [line["n"] for line in uploads.lines] == list(range(10))

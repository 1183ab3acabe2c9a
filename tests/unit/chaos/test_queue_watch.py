"""The watch over Slurm's queue sees two live arrays of one submission, and no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos import queue_watch
from tests.chaos.queue_watch import Ghosts, QueueWatch, live_arrays, live_elements
from tests.stack.process import wait_until


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose `squeue` prints the file `queue`, and whose `scancel` notes its words."""
    programs = {"squeue": f"cat {tmp_path}/queue", "scancel": f'echo "$@" >> {tmp_path}/cancelled'}
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def test_two_live_arrays_of_one_submission_are_reported_and_those_of_two_are_not(
    commands: Path,
) -> None:
    (commands / "queue").write_text("7|job.000-1.a\n8|job.000-2.b\n9|other.000-1.a\n")
    watch = QueueWatch("job")
    wait_until(lambda: watch.answers, 10)
    assert live_arrays("job") == {"job.000-1.a": {"7"}, "job.000-2.b": {"8"}}
    assert not watch.seen
    (commands / "queue").write_text("7|job.000-1.a\n8|job.000-1.a\n")
    wait_until(lambda: watch.seen, 10)
    watch.close()
    assert watch.seen == {"job.000-1.a has the live arrays 7, 8"}


def test_a_queue_that_does_not_answer_is_not_an_empty_one(commands: Path) -> None:
    assert live_arrays("job") is None
    assert Ghosts("job").look() is None


def test_an_element_without_a_process_is_cancelled_after_a_while_and_not_at_once(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (commands / "queue").write_text("7_0|job.000-1.a\n7_1|other.000-1.a\n")
    ghosts = Ghosts("job")
    assert (live_elements("job"), ghosts.look()) == (["7_0"], 0)
    assert not (commands / "cancelled").exists()
    monkeypatch.setattr(queue_watch, "GHOST_S", 0.0)
    ghosts.look()
    assert (commands / "cancelled").read_text() == "7_0\n"
    assert ghosts.cancelled == 1

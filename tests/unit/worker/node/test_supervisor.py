"""A process that can't even begin is not started again and again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from slurm_worker.node.slurm_job import WorkerExit

PROGRAM = """
import os, pathlib, sys
from slurm_worker.node.supervisor import Supervisor

folder, what = pathlib.Path(sys.argv[1]), sys.argv[2]

def child(scratch, recorder, number, death):
    count = len(list(folder.glob("start-*")))
    (folder / f"start-{count}").touch()
    if what in ("recovers", "raises") and count == 2:
        return 0
    if what == "works" and count < 5:
        recorder.owner("w")
        recorder.task("000-00000000", count + 1)
        recorder.items(count, 1, 1.0)
    elif what == "works":
        return 0
    if what == "raises":
        raise OSError("no space left on device")
    os.kill(os.getpid(), 9)

sys.exit(Supervisor(child, 1, folder / "scratch").run())
"""


@pytest.mark.parametrize(
    ("what", "starts", "code"),
    [
        ("dies", 3, WorkerExit.INFRASTRUCTURE),
        ("recovers", 3, WorkerExit.OK),
        ("works", 6, WorkerExit.OK),
    ],
)
def test_after_three_processes_that_die_without_a_task_no_more_are_started(
    tmp_path: Path, what: str, starts: int, code: int
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), what],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == code, ended.stderr
    assert len(list(tmp_path.glob("start-*"))) == starts
    assert ("no more are started" in ended.stderr) == (what == "dies")


def test_a_full_disk_under_the_output_changes_nothing(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path), "raises"],
            stdout=full,
            stderr=full,
            check=False,
            timeout=60,
        )
    assert ended.returncode == WorkerExit.OK
    assert len(list(tmp_path.glob("start-*"))) == 3
    assert not list((tmp_path / "scratch").glob("*")), "the scratch folder is removed"


@pytest.mark.parametrize("stderr", ["/dev/null", "/dev/full"])
def test_a_mistake_has_its_exit_code_also_where_its_line_can_not_be_written(stderr: str) -> None:
    command = [sys.executable, "-m", "slurm_worker", "run", "--config", "not-a-bucket"]
    with Path(stderr).open("w") as output:
        ended = subprocess.run(command, stderr=output, check=False, timeout=60)
    assert ended.returncode == WorkerExit.CONFIG

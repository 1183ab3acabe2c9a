"""A job on the stack is paused, resumed, given workers and watched; Ctrl-C leaves no half state."""

from __future__ import annotations

import os
import pty
import random
import select
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_slurm_provider.coordinator.services import Services
from tests.e2e.conftest import SLURMCTL, Slurmctl, arrays_of, hear_interrupts, write_yaml
from tests.e2e.tools import until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(500)]

HANDLER = """
import time

def handle(item, context):
    time.sleep(item["seconds"])
    return {"n": item["n"]}
"""
SIGINTS = 4


def submit(slurmctl: Slurmctl, config: Path) -> str:
    return str(slurmctl.json("submit", config)["job_id"])


def write_job(folder: Path, items: int, seconds: float, **changes: object) -> Path:
    """A job of items that take their time."""
    folder.mkdir(exist_ok=True)
    lines = [f'{{"id": "k{n}", "n": {n}, "seconds": {seconds}}}\n' for n in range(items)]
    (folder / "items.jsonl").write_text("".join(lines))
    (folder / "handler.py").write_text(HANDLER)
    config = {
        "job_id": f"steer-{uuid.uuid4().hex[:8]}",
        "input": {"path": "items.jsonl", "key": "id"},
        "bundle": 2,
        "workers": 2,
        "handler": {"entry": "handler:handle", "code": "."},
        "slurm": {"mem": "200M", "time": "10"},
        **changes,
    }
    return write_yaml(folder / "job.yaml", config)


def test_a_paused_job_leaves_the_nodes_and_goes_on_to_its_end_when_resumed(
    slurmctl: Slurmctl, services: Services, tmp_path: Path
) -> None:
    job_id = submit(slurmctl, write_job(tmp_path / "job", items=60, seconds=3))

    def status() -> Any:
        return slurmctl.json("status", job_id)

    until(lambda: status()["tasks"].get("done"), "a task is done")
    waiting = slurmctl.start("wait", job_id, "--interval", "1")
    assert slurmctl.json("pause", job_id)["changed"] is True
    until(lambda: status()["workers"]["alive"] == 0, "the workers leave")
    left = status()
    assert set(left["tasks"]) == {"done", "ready"}, "what they held is done"
    assert left["pending"] > 0
    assert left["problem"] == ""
    assert waiting.poll() is None, "who waits goes on waiting"
    assert len(arrays_of(services, job_id)) == 1

    resumed = slurmctl.json("resume", job_id)
    assert (resumed["changed"], resumed["workers"]) == (True, 2)
    added = slurmctl.json("workers", job_id, "--add", "4")
    assert added["workers"] == 4
    waiting.communicate(timeout=240)
    assert waiting.returncode == 0
    assert status()["ok"] == 60
    slurmctl.json("aggregate", job_id)

    told = slurmctl.json("events", job_id)["events"]
    assert [each["action"] for each in told] == [
        *("planned", "submitted", "paused", "resumed", "submitted", "added workers", "published")
    ]
    arrays = [each["detail"]["arrays"] for each in told if "arrays" in each["detail"]]
    assert set(arrays) == arrays_of(services, job_id)
    assert len({each["detail"]["config"] for each in told if "config" in each["detail"]}) == 2
    assert all("@" in each["actor"] for each in told)
    # On a busy machine, nothing is completed rather than late.
    words = f"slurmctl status {job_id[:8]}"
    until(lambda: job_id in slurmctl.complete(words, 2), "the shell completes the job's id")


def test_watch_fills_the_terminal_and_leaves_it_and_the_job_as_they_were(
    slurmctl: Slurmctl, tmp_path: Path
) -> None:
    job_id = submit(slurmctl, write_job(tmp_path / "job", items=40, seconds=0.5))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [str(SLURMCTL), "watch", job_id, "--interval", "1"],
        env={**slurmctl.environment, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=hear_interrupts,
    )  # fmt: skip
    os.close(theirs)
    seen = read_until(ours, lambda text: "node" in text and "submitted" in text)
    assert "of 40 items" in seen
    process.send_signal(signal.SIGINT)
    seen += read_until(ours, lambda text: "continues; to watch it again" in text)
    assert process.wait(timeout=30) == 130
    assert seen.count("\x1b[?1049h") == seen.count("\x1b[?1049l") == 1
    os.close(ours)
    assert slurmctl("wait", job_id).returncode == 0
    actions = [each["action"] for each in slurmctl.json("events", job_id)["events"]]
    assert actions == ["planned", "submitted"]


def read_until(terminal: int, enough: Callable[[str], bool], seconds: float = 60.0) -> str:
    """What a terminal shows, up to the moment when that is enough."""
    text, deadline = "", time.monotonic() + seconds
    while not enough(text):
        assert time.monotonic() < deadline, text
        if select.select([terminal], [], [], 0.5)[0]:
            try:
                text += os.read(terminal, 65536).decode(errors="replace")
            except OSError:  # the process has closed its side
                break
    return text


def test_submit_interrupted_at_any_point_ends_with_one_array_and_all_items(
    slurmctl: Slurmctl, services: Services, tmp_path: Path
) -> None:
    config = write_job(tmp_path / "job", items=100, seconds=0)
    began = time.monotonic()
    slurmctl.json("submit", config, "--job-id", f"steer-{uuid.uuid4().hex[:8]}")
    whole = time.monotonic() - began
    rng = random.Random(20130102)
    codes: list[int] = []
    while len(codes) < SIGINTS or (130 not in codes and len(codes) < 3 * SIGINTS):
        process = slurmctl.start("submit", config)
        try:
            process.communicate(timeout=rng.uniform(0.4, 1.0) * whole)
            whole *= 0.7  # it was quicker, as on a machine that was busy before
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
            assert "Traceback" not in err, err
        codes.append(process.returncode)
    assert 130 in codes, f"submit was always quicker: {codes}"
    # An interpreter that is about to end no longer handles signals.
    assert set(codes) <= {0, 130, -signal.SIGINT}
    submitted = slurmctl.json("submit", config)
    assert (submitted["items"], submitted["tasks"]) == (100, 50)
    assert slurmctl("wait", submitted["job_id"]).returncode == 0
    assert slurmctl.json("status", submitted["job_id"])["ok"] == 100
    assert arrays_of(services, submitted["job_id"]) == set(submitted["slurm_job_ids"])

"""What Slurm does to workers is told by its reason: in `slurmctl status`, for the tasks, and to
who waits."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.arrays import arrays_of
from airflow_slurm_provider.coordinator.status.dead_workers import find_worker_failures
from airflow_slurm_provider.coordinator.status.progress import read_progress
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.coordinator.watcher import Watcher
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.keys import JobId, TaskId
from slurm_worker.protocol.task_table import TaskTable
from tests.e2e.conftest import Slurmctl, write_yaml
from tests.e2e.tools import until
from tests.stack.settings import ROOT, Mode
from tests.stack.stack import remembered_settings
from tests.stack.state_folder import state_folder

pytestmark = [pytest.mark.stack, pytest.mark.alone, pytest.mark.timeout(500)]

HANDLER = """
import os, signal, time

def hang():
    # Worker and parent stand still, whatever wakes them (Slurm sends CONT), as on a node that
    # swaps: only KILL ends them, and with them the process that holds them.
    held = os.getppid(), os.getpid()
    if os.fork():
        return
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    while True:
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.005)

def handle(item, context):
    if item["what"] == "memory":
        kept = bytearray(900 * 2**20)
        time.sleep(20)
        return {"n": len(kept)}
    if item["what"] == "stop":
        hang()
    time.sleep(item["seconds"])
    return {"n": 1}
"""
LEASE = {"ttl": "8s", "heartbeat": "2s", "margin": "1s", "max_lost": 1}


@pytest.fixture(scope="module", autouse=True)
def _real_slurm(stack: object) -> None:
    settings = remembered_settings(state_folder(ROOT))
    if settings is None or settings.mode is not Mode.SLURM:
        pytest.skip("the embedded cluster kills nobody for memory, and has no node to lose")


def submit(
    slurmctl: Slurmctl, folder: Path, items: list[tuple[str, int]], **changes: object
) -> JobId:
    folder.mkdir()
    lines = [
        f'{{"id": "k{n}", "what": "{what}", "seconds": {seconds}}}\n'
        for n, (what, seconds) in enumerate(items)
    ]
    (folder / "items.jsonl").write_text("".join(lines))
    (folder / "handler.py").write_text(HANDLER)
    name = f"losses-{uuid.uuid4().hex[:8]}"
    config = {
        "job_id": name,
        "input": {"path": "items.jsonl", "key": "id"},
        "bundle": 1,
        "handler": {"entry": "handler:handle", "code": "."},
        "lease": LEASE,
        **changes,
    }
    ended = slurmctl("submit", write_yaml(folder / "job.yaml", config))
    assert ended.returncode == 0, ended.stderr
    return JobId(name)


def command(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def back_in_service(node: str) -> bool:
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)
    return "down" not in command("sinfo", "-h", "-n", node, "-o", "%T").lower()


def array_of(services: Services, job_id: JobId) -> str:
    (only,) = [
        slurm_job_id
        for each in services.jobs(job_id).submissions()
        for slurm_job_id in each.slurm_job_ids
    ]
    return only


def wait_for(services: Services, job_id: JobId) -> tuple[list[str], Watcher]:
    """Wait as the sensor does, and keep what it says."""
    said: list[str] = []
    watcher = Watcher(services, job_id, said.append, max_resubmissions=3)
    deadline = time.monotonic() + 300
    while not (seen := watcher.poll()).finished:
        assert not seen.problem, seen.problem
        assert time.monotonic() < deadline, said
        time.sleep(2)
    return said, watcher


@pytest.fixture(scope="module")
def hung(
    services: Services, slurmctl: Slurmctl, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[JobId]:
    """A job whose worker hangs; it has two minutes until Slurm has ended it."""
    options = {"mem": "300M", "time": "1", "grace": 1, "nodelist": "node1"}
    folder = tmp_path_factory.mktemp("hung") / "job"
    job_id = submit(slurmctl, folder, [("stop", 1)], workers=1, slurm=options)
    yield job_id
    control.cancel(services, job_id)


@pytest.mark.usefixtures("hung")
def test_memory_cancel_requeue_and_a_lost_node_each_have_their_class(
    services: Services, slurmctl: Slurmctl, tmp_path: Path
) -> None:
    items = [("memory", 0), *[("work", 6)] * 30]
    job_id = submit(
        slurmctl,
        tmp_path / "a",
        items,
        workers=6,
        slurm={"mem": "400M", "time": "30", "cpus_per_task": 2},  # some on each node of 8
        retry={"out_of_memory": {"mem": "x4 up to 1200M"}},
    )
    array = array_of(services, job_id)

    def running() -> dict[int, str]:
        arrays = arrays_of(services, job_id, services.jobs(job_id).submissions())
        state = services.slurm.together(arrays)
        return {n: e.node for n, e in state.elements.items() if e.state.value == "RUNNING"}

    until(lambda: len(running()) >= 5, "five workers run")
    nodes = running()
    lost = "node2"
    on_lost = [n for n, node in nodes.items() if node == lost]
    others = [n for n, node in nodes.items() if node != lost]
    assert on_lost, nodes
    until(lambda: find_worker_failures(services, job_id), "the loss is known")
    assert find_worker_failures(services, job_id)[0].error_class.value == "out_of_memory"
    others = [n for n in running() if n in others]
    command("scancel", f"{array}_{others[0]}")
    command("scontrol", "requeue", f"{array}_{others[1]}")
    command("scontrol", "update", f"nodename={lost}", "state=down", "reason=test")
    try:
        until(lambda: {"node_failure"} <= classes(services, job_id), "the loss has its class")
    finally:
        # It may have come back by itself: its slurmd is alive.
        until(lambda: back_in_service(lost), "the node is back")
    said, watcher = wait_for(services, job_id)
    expected = {"out_of_memory", "cancelled", "preempted", "node_failure"}
    assert set(watcher.lost) >= expected, said
    for name in expected:
        assert any(f": {name} (" in line for line in said), said

    document = slurmctl.json("status", job_id)
    assert document["task_errors"] == {"out_of_memory": 1}
    assert {each["error_class"] for each in document["lost_workers"]} >= expected
    memory = [e for e in document["lost_workers"] if e["error_class"] == "out_of_memory"]
    assert memory[0]["max_rss"] > 400 * 2**20
    assert memory[0]["tasks"] == ["000-00000000"]

    before = attempts(services, job_id)
    plan = slurmctl.json("retry", job_id, "--dry-run")
    assert (plan["items"], plan["tasks"]) == ({}, {"out_of_memory": 1})
    assert plan["slurm"] == {"mem": "1200M"}
    again = slurmctl("retry", job_id, "--wait")
    assert again.returncode == 0, again.stderr
    after = attempts(services, job_id)
    assert [task for task in after if after[task] != before[task]] == ["000-00000000"]
    assert services.store(job_id).marker(TaskId("000-00000000")) is not None
    assert read_progress(services, job_id).ok == len(items)


def attempts(services: Services, job_id: JobId) -> dict[str, int]:
    row = services.jobs(job_id).get()
    table = TaskTable(services.rows, job_id, row.shards, LeaseConfig(), services.clock)
    rows = [each for shard in range(row.shards) for each in table.all_rows(shard)]
    return {each.task: each.attempt for each in rows}


def classes(services: Services, job_id: JobId) -> set[str]:
    return {each.error_class.value for each in find_worker_failures(services, job_id)}


def test_a_worker_at_its_time_limit_has_the_class_walltime(services: Services, hung: JobId) -> None:
    until(lambda: "walltime" in classes(services, hung), "the walltime is known", 240)
    (loss,) = [e for e in find_worker_failures(services, hung) if e.error_class.value == "walltime"]
    assert loss.state == "TIMEOUT"
    assert loss.elapsed_s >= 60

"""Handlers that take their process down, or never return: the worker lives, and says whose fault.

A real worker process over the stack's own table and bucket, started as the batch script
starts it, but by this test.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config, load_config
from airflow_slurm_provider.coordinator.submission import upload
from airflow_slurm_provider.coordinator.submission.workers import Workers
from slurm_worker.protocol.keys import TaskState
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import TaskRow
from slurm_worker.results.parts import lines_of

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]

ITEMS = 30
BUNDLE = 10

HANDLER = """
import ctypes, os, resource, signal, sys, threading, time

calls = 0

def handle(item, context):
    global calls
    calls += 1
    flag = context.params.get("flag")
    if flag and calls == 14 and not os.path.exists(flag):
        open(flag, "w").close()
        time.sleep(3)  # the next task is leased meanwhile
        os.kill(os.getpid(), signal.SIGKILL)
    n = item["n"]
    what = context.params.get(str(n))
    if what == "segfault":
        ctypes.string_at(0)
    if what == "exit":
        os._exit(9)
    if what == "memory":
        limit = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (2**30, limit[1]))
        try:
            return {"n": len(bytearray(2**31))}
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limit)
    if what == "loop":
        while True:
            pass
    if what == "deaf loop":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        while True:
            pass
    if what == "thread":
        threading.Thread(target=time.sleep, args=(3600,)).start()
    if what == "sleep":
        context.logger.info("sleeping")
        time.sleep(90)
    if what == "print":
        print("not JSON", {"n": n})
        sys.stderr.write("nor this\\n")
    return {"n": n}
"""


def plan(
    services: Services,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    params: dict[str, str],
    **worker: Any,
) -> Config:
    """Plan a job, and submit nothing for it."""
    (folder / "handler.py").write_text(HANDLER)
    (folder / "items.jsonl").write_text(
        "".join(json.dumps({"id": f"k{n}", "n": n}) + "\n" for n in range(ITEMS))
    )
    config = load_config(
        {
            "job_id": f"bad-{uuid.uuid4().hex[:10]}",
            "input": {"path": str(folder / "items.jsonl"), "key": "id"},
            "bundle": BUNDLE,
            "handler": {"entry": "handler:handle", "code": str(folder), "params": params},
            "worker": {"backoff": "10ms", **worker},
        }
    )
    nobody = Workers((), "", 0, "", reattached=True)
    monkeypatch.setattr(api, "ensure_workers", lambda *_: nobody)
    api.submit(services, config, log=lambda _: None)
    return config


def run_worker(
    services: Services, config: Config, scratch: Path
) -> subprocess.CompletedProcess[str]:
    standing = services.jobs(config.spec.id).get()
    arguments = upload.worker_arguments(services, config.spec, standing.config, "000-1")
    return subprocess.run(
        [sys.executable, "-m", "slurm_worker", *arguments, "--scratch", str(scratch)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def rows(services: Services, config: Config) -> list[TaskRow]:
    standing = services.jobs(config.spec.id).get()
    table = TaskTable(
        services.rows, standing.job, standing.shards, config.spec.resolve_lease(), services.clock
    )
    return [row for shard in range(standing.shards) for row in table.all_rows(shard)]


def errors(services: Services, config: Config) -> dict[str, tuple[str, str]]:
    """Key: (class, message) of every failed item that is committed."""
    found = {}
    store = services.store(config.spec.id)
    for marker in store.markers():
        for part in marker.parts:
            if part.kind == "errors":
                for line in lines_of(store.read_part(part), part.key).splitlines():
                    record = json.loads(line)
                    found[record["_key"]] = (record["class"], record["message"])
    return found


@pytest.mark.parametrize(
    ("what", "error_class"),
    [
        ("segfault", "worker_crash"),
        ("exit", "worker_crash"),
        ("memory", "out_of_memory"),
        ("loop", "timeout"),
        ("deaf loop", "timeout"),
    ],
)
def test_a_deadly_item_fails_alone_and_its_task_goes_on_at_once(
    services: Services,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    error_class: str,
) -> None:
    config = plan(services, tmp_path, monkeypatch, {"13": what}, item_timeout="1s")
    began = time.monotonic()
    ended = run_worker(services, config, tmp_path)
    assert ended.returncode == 0, ended.stderr
    found = errors(services, config)
    assert {key: value[0] for key, value in found.items()} == {"k13": error_class}
    done = rows(services, config)
    assert {row.state for row in done} == {TaskState.DONE}
    assert sum(row.items_ok for row in done) == ITEMS - 1
    # No lease had to run out for this.
    assert sum(row.lost for row in done) == 0
    assert time.monotonic() - began < config.spec.lease.ttl
    assert list(tmp_path.glob("slurm-worker-*")) == [], "scratch is left clean"


def test_what_a_killed_process_had_leased_ahead_is_taken_over_at_once(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In its second task: how long one takes is known by then, and a third is there.
    params = {"flag": str(tmp_path / "flag")}
    config = plan(services, tmp_path, monkeypatch, params)
    began = time.monotonic()
    ended = run_worker(services, config, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - began < config.spec.lease.ttl
    done = rows(services, config)
    assert sum(row.items_ok for row in done) == ITEMS
    assert sum(row.lost for row in done) == 1, "it had leased the next task, and lost that"


@pytest.mark.parametrize("what", ["thread", "print"])
def test_threads_and_prints_of_a_handler_harm_nothing(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    config = plan(services, tmp_path, monkeypatch, {"13": what})
    ended = run_worker(services, config, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert errors(services, config) == {}
    assert sum(row.items_ok for row in rows(services, config)) == ITEMS
    if what == "print":
        assert "not JSON {'n': 13}" in ended.stdout


def test_several_processes_share_the_work(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plan(services, tmp_path, monkeypatch, {}, processes=3)
    assert run_worker(services, config, tmp_path).returncode == 0
    assert sum(row.items_ok for row in rows(services, config)) == ITEMS
    logs = list(services.objects.list(services.paths(config.spec.id).root + "logs/"))
    assert len(logs) == 3, "each process ships its own log"


def test_a_scratch_that_can_not_be_written_to_is_one_line_and_exit_75(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plan(services, tmp_path, monkeypatch, {})
    ended = run_worker(services, config, Path("/proc/nowhere"))
    assert ended.returncode == 75
    (line,) = ended.stderr.splitlines()
    assert line.startswith("slurm-worker: scratch /proc/nowhere")
    assert {row.state for row in rows(services, config)} == {TaskState.READY}


def test_what_a_killed_worker_left_on_the_node_is_removed_by_the_next_one(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = tmp_path / f"slurm-worker-{os.getuid()}-{ended.pid}-x1"
    alive = tmp_path / f"slurm-worker-{os.getuid()}-{os.getpid()}-x2"
    for folder in (left, alive):
        folder.mkdir(0o700)
        (folder / "0-x").mkdir()
    config = plan(services, tmp_path, monkeypatch, {})
    assert run_worker(services, config, tmp_path).returncode == 0
    assert not left.exists()
    assert alive.exists()


def test_a_worker_that_is_asked_to_stop_goes_in_time_though_an_item_runs_on(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = plan(services, tmp_path, monkeypatch, {"13": "sleep"})
    standing = services.jobs(config.spec.id).get()
    arguments = upload.worker_arguments(services, config.spec, standing.config, "000-1")
    with subprocess.Popen(
        [sys.executable, "-m", "slurm_worker", *arguments, "--scratch", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stderr is not None
        assert any("sleeping" in line for line in worker.stderr), "the item runs"
        worker.terminate()
        # The rest of its output is read, so that it never waits for us.
        ended = "".join(worker.stderr)
        assert worker.wait(60) == 0, ended
    assert "the worker exits without it" in ended
    assert TaskState.LEASED not in {row.state for row in rows(services, config)}
    (log,) = services.objects.list(services.paths(config.spec.id).root + "logs/")
    assert (
        "the worker exits without it" in gzip.decompress(services.objects.get(log) or b"").decode()
    ), "the log is shipped before the process ends"

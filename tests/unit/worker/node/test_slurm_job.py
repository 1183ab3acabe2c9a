"""A worker receives the request to stop, whatever it is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slurm_worker.node.slurm_job import array_size, requeue, seconds_left

PROGRAM = """
import sys, threading, time
from slurm_worker.node.slurm_job import Drain
from slurm_worker.node.threads import PooledThreads

threads = PooledThreads()
drain = Drain(threads.signal())
waiting = [threads.start(drain.stop_requested.wait) for _ in range(3)]
drain.install()
print("ready", flush=True)
{main}
for thread in waiting:
    thread.result()
print(drain.before_time_limit, flush=True)
"""


def run(main: str, *signals: signal.Signals) -> str:
    program = PROGRAM.format(main=main)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for number in signals:
                process.send_signal(number)
            out, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    return out.strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_each_signal_requests_a_stop_and_usr1_means_the_time_limit(number: signal.Signals) -> None:
    assert run("drain.stop_requested.wait()", number) == str(number is signal.SIGUSR1)


def test_many_signals_at_once_cause_no_deadlock() -> None:
    # Slurm signals every process of a step while the supervisor passes its own signal on.
    main = "drain.stop_requested.wait(); time.sleep(0.2); drain.stop_requested.wait()"
    burst = [signal.SIGTERM, signal.SIGINT] * 300
    for _ in range(5):
        assert run(main, *burst) == "False"


def test_a_signal_arrives_while_the_main_thread_is_inside_a_long_call() -> None:
    # `hash` of a long string takes long, checks for no signals, and lets no other thread run;
    # `hashlib` lets them.
    main = "import hashlib; data = b'x' * 2**30; began = time.time()\n"
    main += "heard = threads.start(lambda: (drain.stop_requested.wait(), time.time())[1])\n"
    main += "hashlib.sha256(data); ended = time.time()\n"
    main += "print(heard.result() < ended, flush=True)"
    assert run(main, signal.SIGTERM).split() == ["True", "False"]


@pytest.mark.parametrize("name", ["SQUEUE_FORMAT", "SLURM_TIME_FORMAT", "SCONTROL_ALL"])
def test_variables_of_the_account_do_not_change_slurms_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for command in ("squeue", "scontrol"):
        program = f'[ -z "${name}" ] || {{ echo odd >&2; exit 1; }}; echo 2999-01-01T00:00:00'
        (tmp_path / command).write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv(name, "relative")
    left = seconds_left({"SLURM_JOB_ID": "7"})
    assert left is not None
    assert left > 0
    assert requeue({"array": "7", "element": "1"}) == ""


@pytest.mark.parametrize(("stated", "size"), [("40", 40), ("", None), ("many", None)])
def test_the_size_of_the_array_is_known_if_slurm_says_it(stated: str, size: int | None) -> None:
    assert array_size({"SLURM_ARRAY_TASK_COUNT": stated}) == size

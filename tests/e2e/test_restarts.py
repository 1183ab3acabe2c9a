"""Waiting goes on whatever around it is killed, and nothing is submitted twice for it."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.protocol.keys import JobId
from tests.e2e.conftest import arrays_of
from tests.e2e.tools import until
from tests.stack import stack as the_stack
from tests.stack.airflow_api import AirflowApi, DagRun, failing_tasks
from tests.stack.process import known_services, with_children
from tests.stack.settings import ROOT, Mode
from tests.stack.stack import remembered_settings
from tests.stack.state_folder import state_folder

pytestmark = [pytest.mark.stack, pytest.mark.alone, pytest.mark.timeout(600)]

DAG_ID = "waits_for_work"
KILLED = ("airflow-scheduler", "airflow-triggerer", "task process", "sshd", "slurmctld")


@pytest.fixture
def gate() -> Iterator[Path]:
    """A file that lets the work end when it is made; where the cluster's user sees it, too."""
    path = Path(tempfile.gettempdir()) / f"gate-{uuid.uuid4().hex}"
    yield path
    path.touch()
    path.unlink()


def test_a_run_goes_on_though_all_that_it_needs_is_killed_in_turn(
    environment: Mapping[str, str], services: Services, gate: Path
) -> None:
    killed = [
        each
        for each in KILLED
        if each not in ("sshd", "slurmctld")
        or _mode() is Mode.SLURM  # the embedded cluster has neither
    ]
    api = AirflowApi.of_stack(environment)
    api.wait_for_dag(DAG_ID)
    job_id = f"restarts-{uuid.uuid4().hex[:8]}"
    items = [{"id": f"k{n}", "gate": str(gate)} for n in range(30)]
    run_id = api.trigger(DAG_ID, {"items": items, "job_id": job_id})
    for each in killed:
        until(lambda: _waits(api, run_id), "the sensor waits")
        _kill(each, api.run(DAG_ID, run_id))
        the_stack.up(print)
    until(lambda: _waits(api, run_id), "the sensor waits")
    gate.touch()
    run = api.follow({DAG_ID: run_id}, timeout=300)[DAG_ID]
    logs = "\n".join(api.log_tail(run, task) for task in failing_tasks(run))
    assert run.state == "success", f"{run.summary()}\n{logs}"
    tries = {task.task_id: task.try_number for task in run.tasks}
    assert tries["in_process"] > 1, "its process was killed, so this was not its first try"
    for task_id in tries:
        of_task = JobId(f"{job_id}-{task_id}")
        (submission,) = services.jobs(of_task).submissions()
        assert arrays_of(services, of_task) == set(submission.slurm_job_ids)
        assert len(submission.slurm_job_ids) == 1


def _mode() -> Mode:
    settings = remembered_settings(state_folder(ROOT))
    assert settings is not None
    return settings.mode


def _waits(api: AirflowApi, run_id: str) -> bool:
    run = api.run(DAG_ID, run_id)
    assert not failing_tasks(run), "\n".join(api.log_tail(run, each) for each in failing_tasks(run))
    states = {task.task_id: task.state for task in run.tasks}
    waits = states == {"deferred": "deferred", "in_process": "running"}
    return waits and bool(_task_processes(run))


def _kill(name: str, run: DagRun) -> None:
    """Kill a service with all its children, or the task's process."""
    if name == "task process":
        pids = _task_processes(run)
    else:
        (service,) = [each for each in known_services(state_folder(ROOT)) if each.name == name]
        pids = with_children(service.pid)
    assert pids, f"{name} is not there to be killed"
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # Who looks before a killed process has ended takes the service for alive.
    until(lambda: all(_gone(pid) for pid in pids), "all processes are gone")


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _task_processes(run: DagRun) -> list[int]:
    """The process that runs the run's task `in_process`, by its title."""
    (task,) = [each for each in run.tasks if each.task_id == "in_process"]
    (scheduler,) = [
        each for each in known_services(state_folder(ROOT)) if each.name == "airflow-scheduler"
    ]
    return [pid for pid in with_children(scheduler.pid) if task.id in _title(pid)]


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""

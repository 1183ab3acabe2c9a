"""The cost of waiting for many jobs, and how soon the end of a job is detected.

make bench-waiting        (make stack-up first: it runs on Slurm)

Real sensors wait in a real triggerer for arrays that are held. Counted over one minute, for one
sensor and for all of them: commands that sshd ran, job requests that slurmctld (``sdiag``) and
slurmdbd (``sacctmgr show stats``) served, and CPU time and memory of the triggerer. The reaction
time is from the last commit of the last worker to the end of the task.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.services import Services, open_services
from airflow_slurm_provider.coordinator.spec.job_spec import load_config
from airflow_slurm_provider.coordinator.spec.site import load_site
from airflow_slurm_provider.coordinator.submission import control
from slurm_worker.protocol.keys import JobId
from tests.stack.airflow_api import AirflowApi
from tests.stack.process import known_services, with_children
from tests.stack.settings import ROOT
from tests.stack.state_folder import state_folder

WINDOW_S = 60.0
_HANDLER = "def handle(item, context):\n    return {}\n"


@dataclass(frozen=True)
class Cost:
    """The cost of waiting over one minute."""

    sensors: int
    commands: int
    squeue: int
    sacct: int
    cpu_percent: float
    memory_mb: float

    def line(self) -> str:
        return (
            f"{self.sensors:>4} sensors: {self.commands} commands over SSH, {self.squeue} squeue, "
            f"{self.sacct} sacct a minute; triggerer {self.cpu_percent:.0f} % of a core, "
            f"{self.memory_mb:.0f} MB"
        )


class Bench:
    """The stack, with jobs whose arrays are held."""

    def __init__(self, folder: Path) -> None:
        site = load_site(os.environ["SLURMCTL_CONFIG"])
        if site.cluster.transport != "ssh":
            raise SystemExit("waiting: the stack has no Slurm; this benchmark measures its sshd")
        self.services: Services = open_services(site)
        self.api = AirflowApi.of_stack(os.environ)
        self._user = site.cluster.user
        self._state = state_folder(ROOT)
        (folder / "handler.py").write_text(_HANDLER)
        (folder / "items.jsonl").write_text('{"id": "a"}\n')
        self._folder = folder

    def submit_held(self, number: int) -> str:
        config = load_config(
            {
                "job_id": f"wait-{uuid.uuid4().hex[:8]}",
                "input": {"path": str(self._folder / "items.jsonl"), "key": "id"},
                "handler": {"entry": "handler:handle", "code": str(self._folder)},
                "slurm": {"mem": "100M", "time": "00:10:00", "extra_args": ["--hold"]},
            }
        )
        api.submit(self.services, config, log=lambda _: None)
        if number % 50 == 49:
            print(f"{number + 1} jobs submitted", flush=True)
        return str(config.spec.id)

    def wait_for(self, job_ids: list[str]) -> Cost:
        """Let a sensor wait for each job; return the cost of one minute."""
        dag_id = "waits_for_many_jobs"
        self.api.wait_for_dag(dag_id)
        run_id = self.api.trigger(dag_id, {"job_ids": job_ids})
        began = time.monotonic()
        while self.api.count(dag_id, run_id, "deferred") < len(job_ids):
            if time.monotonic() - began > 1800:
                raise SystemExit("waiting: not all sensors were deferred within 30 minutes")
            time.sleep(2)
        print(f"{len(job_ids)} sensors wait after {time.monotonic() - began:.0f} s", flush=True)
        # The triggerer starts its triggers, and each polls for the first time.
        time.sleep(30)
        cost = self._measure(len(job_ids))
        self.api.end(dag_id, run_id)
        time.sleep(15)
        return cost

    def _measure(self, sensors: int) -> Cost:
        pids = self._triggerer()
        counters: list[Callable[[], float]] = [self._sessions, self._squeue, self._sacct]
        before = [count() for count in counters]
        cpu = sum(map(_cpu_s, pids))
        began = time.monotonic()
        time.sleep(WINDOW_S)
        took = time.monotonic() - began
        after = [count() for count in counters]
        sessions, squeue, sacct = (
            round((b - a) * 60 / took) for a, b in zip(before, after, strict=True)
        )
        return Cost(
            sensors,
            sessions,
            squeue,
            sacct,
            100 * (sum(map(_cpu_s, pids)) - cpu) / took,
            sum(map(_memory_mb, pids)),
        )

    def _sessions(self) -> float:
        text = (self._state / "logs" / "sshd.log").read_text(errors="replace")
        return float(text.count(f"Starting session: command for {self._user}"))

    def _squeue(self) -> float:
        found = re.findall(r"REQUEST_JOB_INFO(?:_SINGLE)?\s.*count:(\d+)", _run(["sdiag"]))
        return float(sum(map(int, found)))

    def _sacct(self) -> float:
        shown = _run(["sacctmgr", "show", "stats"])
        found = re.search(r"DBD_GET_JOBS_COND\s.*count:(\d+)", shown)
        return float(found.group(1)) if found else 0.0

    def _triggerer(self) -> list[int]:
        (service,) = [e for e in known_services(self._state) if e.name == "airflow-triggerer"]
        return with_children(service.pid)

    def reactions(self, times: int) -> list[float]:
        """Seconds from the last commit of a small job to its sensor's success."""
        found = []
        dag_id = "waits_for_work"
        self.api.wait_for_dag(dag_id)
        for number in range(times):
            items = [{"id": f"k{n}", "seconds": 1} for n in range(20 + 3 * number)]
            job_id = f"react-{uuid.uuid4().hex[:8]}"
            run_id = self.api.trigger(dag_id, {"items": items, "job_id": job_id})
            run = self.api.follow({dag_id: run_id}, timeout=300)[dag_id]
            for task in run.tasks:
                if task.task_id != "deferred" or task.end is None:
                    continue
                store = self.services.store(JobId(f"{job_id}-{task.task_id}"))
                found.append(task.end - max(marker.finished for marker in store.markers()))
        return found

    def cancel(self, job_ids: list[str]) -> None:
        for each in job_ids:
            control.cancel(self.services, JobId(each))
        self.services.close()


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def _cpu_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sensors", type=int, default=300)
    parser.add_argument("--reactions", type=int, default=5)
    parser.add_argument("--write", type=Path, help="the Markdown file for the results")
    arguments = parser.parse_args()
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        reactions = bench.reactions(arguments.reactions)
        reaction = (
            f"with 2 s between polls: median {statistics.median(reactions):.1f} s, "
            f"longest {max(reactions):.1f} s, in {len(reactions)} runs"
        )
        print(f"reaction {reaction}", flush=True)
        jobs = [bench.submit_held(number) for number in range(arguments.sensors)]
        try:
            for each in (jobs[:1], jobs):
                costs.append(bench.wait_for(each))
                print(costs[-1].line(), flush=True)
        finally:
            bench.cancel(jobs)
    if arguments.write:
        arguments.write.write_text(_report(reaction, costs))


def _report(reaction: str, costs: list[Cost]) -> str:
    rows = "".join(
        f"| {each.sensors} | {each.commands} | {each.squeue} | {each.sacct} "
        f"| {each.cpu_percent:.0f} % | {each.memory_mb:.0f} MB |\n"
        for each in costs
    )
    return f"""# Waiting

`make bench-waiting` measured these figures on {os.cpu_count()} cores with Slurm, sshd
and Airflow of the development stack. Deferred sensors wait for arrays that are held. Per minute:

| sensors | commands over SSH | squeue | sacct | triggerer, of a core | its memory |
| --- | --- | --- | --- | --- | --- |
{rows}
The counts are from the log of sshd, `sdiag` and `sacctmgr show stats`. The time from the last
commit of a job to the success of its sensor, {reaction}.
"""


if __name__ == "__main__":
    main()

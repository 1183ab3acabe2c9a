"""Airflow's parts with the coordinator replaced at its one seam, the verbs of `job`."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_slurm_provider.coordinator import api, watcher
from airflow_slurm_provider.coordinator.anomalies.alert import Alert, AnomalyKind
from airflow_slurm_provider.coordinator.status.progress import JobStatus, Progress
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.coordinator.watcher import Watcher
from airflow_slurm_provider.hooks.slurm import SlurmHook
from airflow_slurm_provider.operators import retry_by_error_class
from slurm_worker.protocol.keys import JobState
from tests.unit.coordinator.fakes import services


def progress(*, done: bool, failed: dict[str, int] | None = None) -> Progress:
    """A job of 100 items in 10 tasks."""
    failed = failed or {}
    return Progress(
        job_id="job-1",
        state=JobState.OPEN,
        rounds=1,
        tasks={"done": 10} if done else {"done": 4, "ready": 6},
        items=100,
        ok=(100 if done else 40) - sum(failed.values()),
        failed=failed,
        rows=100,
    )


RUNNING = JobStatus(progress(done=False), None, finished=False)
FINISHED = JobStatus(progress(done=True), None, finished=True)
STALLED = JobStatus(
    progress(done=False), None, finished=False, problem="no worker is left", workers_gone=True
)


ALERT = Alert(
    job_id="job-1",
    kind=AnomalyKind.STALL,
    subject="job",
    episode=1,
    message="no item has ended for 300 s",
    advice="look at the workers' logs",
    numbers={"seconds": 300.0},
    at_ms=1,
)


def raise_once(patch: pytest.MonkeyPatch, *alerts: Alert) -> None:
    """Let the first query of any watcher raise the alerts."""
    left = list(alerts)

    def take(_self: Watcher) -> list[Alert]:
        taken = list(left)
        left.clear()
        return taken

    patch.setattr(Watcher, "take_alerts", take)


@dataclass
class Coordinator:
    """Answers in order; remembers the requests."""

    polls: list[Any] = field(default_factory=lambda: [FINISHED])
    retries: list[api.RetryResult] = field(default_factory=list)
    submits: int = 0
    cancelled: list[str] = field(default_factory=list)
    resubmitted: int = 0
    error: Exception | None = None
    asked: list[dict[str, object]] = field(default_factory=list)

    def poll(self, _services: object, _job_id: str) -> JobStatus:
        answer = self.polls.pop(0) if len(self.polls) > 1 else self.polls[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def submit(self, _services: object, config: Any, **_: object) -> api.SubmitResult:
        if self.error:
            raise self.error
        self.submits += 1
        return api.SubmitResult(
            config.spec.job_id, 0, 10, 100, 2, "name", False, slurm_job_ids=("7",)
        )

    def retry(self, _services: object, job_id: str, *_: object, **asked: object) -> api.RetryResult:
        self.asked.append(asked)
        return self.retries.pop(0) if self.retries else api.RetryResult(job_id, None)

    def cancel(self, _services: object, job_id: str, **_: object) -> list[str]:
        self.cancelled.append(job_id)
        return ["7"]

    def resubmit(
        self, _services: object, _job_id: str, *, max_resubmits: int, **_: object
    ) -> str | None:
        if self.resubmitted >= max_resubmits:
            return None
        self.resubmitted += 1
        return "8"

    def worker_failures(self, _services: object, _job_id: str) -> list[object]:
        return []

    def cured(self, _services: object, _job_id: str) -> dict[str, int]:
        return {"network": 2}

    def progress(self, _services: object, _job_id: str) -> Progress:
        return progress(done=True, failed={"bad_input": 3})


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> Coordinator:
    fake = Coordinator()
    for verb in ("submit", "retry", "resubmit"):
        monkeypatch.setattr(api, verb, getattr(fake, verb))
    monkeypatch.setattr(watcher, "read_status", fake.poll)
    monkeypatch.setattr(watcher, "find_worker_failures", fake.worker_failures)
    monkeypatch.setattr(retry_by_error_class, "read_progress", fake.progress)
    monkeypatch.setattr(retry_by_error_class, "cured_by_class", fake.cured)
    monkeypatch.setattr(control, "cancel", fake.cancel)
    edges = services()
    monkeypatch.setattr(SlurmHook, "services", lambda _self, **_: edges)
    return fake


@pytest.fixture
def context() -> dict[str, Any]:
    pushed: dict[str, Any] = {}
    ti = SimpleNamespace(
        dag_id="d",
        task_id="t",
        run_id="r",
        try_number=1,
        xcom_push=lambda key, value: pushed.__setitem__(key, value),
    )
    return {"ti": ti, "pushed": pushed}

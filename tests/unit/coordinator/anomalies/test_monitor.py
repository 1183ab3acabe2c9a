"""Of all processes that watch a job, one reports an alert; alerts are kept, and fail no wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.anomalies.alert import Alert, AnomalyKind, read_alerts
from airflow_slurm_provider.coordinator.anomalies.monitor import AnomalyMonitor
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.progress import JobStatus, read_status
from slurm_worker.errors import ServiceError
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.ports import Applied, Refused, Row
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import Claimed
from slurm_worker.testing import ManualClock, MemoryObjects, MemoryRows
from tests.unit.coordinator.fakes import FakeSlurm, make_config, services

QUICK = {"stall_first": "60s", "calm": "100s"}


@pytest.fixture
def edges() -> Services:
    return services(FakeSlurm())


@pytest.fixture
def job_id(edges: Services, tmp_path: Path) -> JobId:
    config = make_config(tmp_path / "job", anomalies=QUICK)
    api.submit(edges, config, log=lambda _: None)
    return config.spec.id


class Watch:
    """A process that watches, and what it reports."""

    def __init__(self, edges: Services, job_id: JobId) -> None:
        self.edges, self.job_id = edges, job_id
        self.logged: list[str] = []
        self.alerts: list[Alert] = []
        self.anomalies = AnomalyMonitor(edges, job_id, self.logged.append, alert=self.alerts.append)

    def poll(self) -> JobStatus:
        seen = read_status(self.edges, self.job_id)
        self.anomalies.check(seen)
        return seen


def wait(edges: Services, seconds: float) -> None:
    assert isinstance(edges.clock, ManualClock)
    edges.clock.advance(seconds)


class Hung:
    """A worker that renews its lease, and does nothing else."""

    def __init__(self, edges: Services, job_id: JobId) -> None:
        shards = edges.jobs(job_id).get().shards
        self.table = TaskTable(edges.rows, job_id, shards, LeaseConfig(), edges.clock)
        (row,) = self.table.page(0, "", 1)
        claimed = self.table.claim(row, "100_0-r0-aa")
        assert isinstance(claimed, Claimed)
        self.lease = claimed.lease

    def beat(self, edges: Services, seconds: float, items: int = 0) -> None:
        for _ in range(int(seconds // 30)):
            wait(edges, 30)
            self.table.heartbeat(self.lease, items, 0)


def test_one_of_several_watchers_reports_the_alert(edges: Services, job_id: JobId) -> None:
    watchers = [Watch(edges, job_id) for _ in range(3)]
    worker = Hung(edges, job_id)
    for _ in range(4):
        worker.beat(edges, 60)
        for each in watchers:
            each.poll()
    alerts = [alert for each in watchers for alert in each.alerts]
    assert [each.kind for each in alerts] == [AnomalyKind.STALL]
    assert sum(line.startswith("anomaly: ") for each in watchers for line in each.logged) == 1
    events = [each for each in edges.jobs(job_id).events() if each.action == "anomaly"]
    assert len(events) == 1
    assert read_alerts(edges, job_id) == alerts


def test_a_restarted_watcher_reports_nothing_twice_and_ends_the_episode(
    edges: Services, job_id: JobId
) -> None:
    worker = Hung(edges, job_id)
    first = Watch(edges, job_id)
    first.poll()
    worker.beat(edges, 120)
    first.poll()
    assert len(first.alerts) == 1

    second = Watch(edges, job_id)
    second.poll()
    worker.beat(edges, 30)
    second.poll()
    assert second.alerts == []
    for items in range(1, 6):
        worker.beat(edges, 30, items)
        second.poll()
    (alert,) = read_alerts(edges, job_id)
    assert alert.over_ms > alert.at_ms
    worker.beat(edges, 120, 5)
    second.poll()
    assert [each.episode for each in second.alerts] == [2]


def test_the_audit_log_is_enough_when_s3_has_lost_the_state(edges: Services, job_id: JobId) -> None:
    worker = Hung(edges, job_id)
    first = Watch(edges, job_id)
    first.poll()
    worker.beat(edges, 120)
    first.poll()
    edges.objects.delete(edges.paths(job_id).anomalies)
    second = Watch(edges, job_id)
    for _ in range(4):
        worker.beat(edges, 30)
        second.poll()
    assert second.alerts == []
    assert len(read_alerts(edges, job_id)) == 1


def test_a_new_process_for_each_check_finds_what_one_process_finds(
    edges: Services, job_id: JobId
) -> None:
    worker = Hung(edges, job_id)
    alerts = []
    for _ in range(8):
        watch = Watch(edges, job_id)
        watch.poll()
        alerts += watch.alerts
        worker.beat(edges, 30)
    assert [each.kind for each in alerts] == [AnomalyKind.STALL]


def test_an_alert_whose_writer_died_between_two_writes_is_in_the_audit_log(
    edges: Services, job_id: JobId
) -> None:
    jobs = edges.jobs(job_id)
    alert = Alert(job_id, AnomalyKind.STALL, "job", 1, "m", "a", {"share": 0.25, "held": 3}, 5)
    assert jobs.audit("a", "anomaly", alert.detail(), once="anomaly/stall/job/1")
    (event,) = [each for each in jobs.events() if each.action == "anomaly"]
    edges.rows.delete(f"JOB#{job_id}#EVENT#00", event.sk)
    assert not jobs.audit("b", "anomaly", {}, once="anomaly/stall/job/1")
    assert [each for each in jobs.events() if each.action == "anomaly"] == [event]
    assert read_alerts(edges, job_id)[0].numbers == {"share": 0.25, "held": 3}


def test_a_watcher_that_detects_the_same_repairs_the_audit_log_of_one_that_died(
    edges: Services, job_id: JobId
) -> None:
    first, second = Watch(edges, job_id), Watch(edges, job_id)
    worker = Hung(edges, job_id)
    for watch in (first, second):
        watch.poll()
    worker.beat(edges, 120)
    first.poll()
    jobs = edges.jobs(job_id)
    (event,) = [each for each in jobs.events() if each.action == "anomaly"]
    edges.rows.delete(f"JOB#{job_id}#EVENT#00", event.sk)
    second.poll()
    assert [each for each in jobs.events() if each.action == "anomaly"] == [event]
    assert second.alerts == []


class Repeating(MemoryRows):
    """Each reply to a new row is lost once, and the client asks again."""

    def put_new(self, row: Row) -> Applied | Refused:
        super().put_new(row)
        return super().put_new(row)


def test_a_process_whose_reply_was_lost_still_delivers_its_alert() -> None:
    jobs = JobTable(Repeating(), JobId("j"), ManualClock())
    assert jobs.audit("a", "anomaly", {}, once="anomaly/stall/job/1")
    assert not jobs.audit("b", "anomaly", {}, once="anomaly/stall/job/1")
    assert [each.actor for each in jobs.events()] == ["a"]


def test_a_callback_that_raises_does_not_stop_the_wait(edges: Services, job_id: JobId) -> None:
    def fail(_: Alert) -> None:
        raise LookupError("no such channel")

    logged: list[str] = []
    anomalies = AnomalyMonitor(edges, job_id, logged.append, alert=fail)
    worker = Hung(edges, job_id)
    anomalies.check(read_status(edges, job_id))
    worker.beat(edges, 120)
    anomalies.check(read_status(edges, job_id))
    assert "alert stall/job/1: its callback failed: LookupError: no such channel" in logged


def test_an_unreachable_store_is_logged_once_and_does_not_stop_the_wait(
    edges: Services, job_id: JobId, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(edges, job_id)

    def away(*_: object, **__: object) -> None:
        raise ServiceError("S3 is away")

    monkeypatch.setattr(MemoryObjects, "put", away)
    for _ in range(3):
        wait(edges, 60)
        watch.poll()
    assert watch.logged == ["anomalies were not checked: S3 is away"]


def test_a_job_can_switch_anomalies_off(edges: Services, tmp_path: Path) -> None:
    config = make_config(tmp_path / "job", anomalies={**QUICK, "enabled": False})
    api.submit(edges, config, log=lambda _: None)
    watch, worker = Watch(edges, config.spec.id), Hung(edges, config.spec.id)
    for _ in range(3):
        worker.beat(edges, 120)
        watch.poll()
    assert watch.alerts == []
    assert edges.objects.get(edges.paths(config.spec.id).anomalies) is None

"""Each query of a job reports its state to Airflow's metrics."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import statsd_logger

from airflow_slurm_provider.coordinator.status.progress import JobStatus
from airflow_slurm_provider.metrics import JobMetrics
from airflow_slurm_provider.sensors.slurm_array import SlurmArraySensor
from airflow_slurm_provider.slurm.array_state import ArrayState, Element
from airflow_slurm_provider.slurm.states import ElementState
from airflow_slurm_provider.triggers.slurm_array import SlurmArrayTrigger
from tests.unit.airflow.conftest import ALERT, FINISHED, Coordinator, progress, raise_once


class Sink:
    """Gauges and counters by name and tags."""

    def __init__(self) -> None:
        self.gauges: dict[tuple[str, ...], float] = {}
        self.counts: dict[tuple[str, ...], int] = {}

    def gauge(self, stat: str, value: float, *, tags: dict[str, Any]) -> None:
        assert tags["backfill"] == "job-1"
        self.gauges[_key(stat, tags)] = value

    def incr(self, stat: str, *, tags: dict[str, Any]) -> None:
        self.counts[_key(stat, tags)] = self.counts.get(_key(stat, tags), 0) + 1


def _key(stat: str, tags: dict[str, Any]) -> tuple[str, ...]:
    return (
        stat.removeprefix("slurm_backfill."),
        *(tags[name] for name in tags if name != "backfill"),
    )


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Sink:
    """What Airflow's metrics get."""
    found = Sink()
    monkeypatch.setattr(stats.Stats, "gauge", found.gauge)
    monkeypatch.setattr(stats.Stats, "incr", found.incr)
    return found


def running(failed: dict[str, int] | None = None) -> JobStatus:
    elements = {0: Element(ElementState.RUNNING), 1: Element(ElementState.PENDING)}
    array = ArrayState("7", elements, alive=2)
    return JobStatus(progress(done=False, failed=failed), array, finished=False)


def test_a_status_query_reports_items_tasks_and_workers() -> None:
    sink = Sink()
    JobMetrics("job-1", sink).record(running({"network": 3}))
    assert sink.gauges[("items",)] == 100
    assert sink.gauges[("items_ok",)] == 37
    assert sink.gauges[("items_pending",)] == 60
    assert sink.gauges[("items_failed", "network")] == 3
    assert sink.gauges[("tasks", "done")] == 4
    assert sink.gauges[("tasks", "leased")] == 0, "a state that no task is in falls to 0"
    assert (sink.gauges[("workers_running",)], sink.gauges[("workers_pending",)]) == (1, 1)


def test_gauges_fall_to_zero_for_cured_failures_and_for_workers_at_the_end() -> None:
    sink = Sink()
    metrics = JobMetrics("job-1", sink)
    metrics.record(running({"network": 3}))
    metrics.record(FINISHED)
    assert sink.gauges[("items_failed", "network")] == 0
    assert sink.gauges[("workers_running",)] == 0


def test_the_trigger_and_the_sensor_report_metrics_through_airflow(
    coordinator: Coordinator,
    context: dict[str, Any],
    sink: Sink,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raise_once(monkeypatch, ALERT)
    SlurmArraySensor(task_id="wait", job_id="job-1", deferrable=False).poke(context)
    assert sink.gauges.pop(("items_ok",)) == 100
    assert sink.counts == {("anomalies", "stall"): 1}
    raise_once(monkeypatch, ALERT)
    trigger = SlurmArrayTrigger("job-1", slurm_conn_id="slurm", poll_interval=0.0)

    async def ends() -> None:
        async for _ in trigger.run():
            return

    asyncio.run(ends())
    assert sink.gauges[("items_ok",)] == 100
    assert sink.counts == {("anomalies", "stall"): 2}


def test_a_statsd_server_gets_the_metrics_with_their_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_HOST", "127.0.0.1")
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_PORT", str(server.getsockname()[1]))
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED", "True")
        JobMetrics("job-1", statsd_logger.get_statsd_logger()).record(FINISHED)
        assert server.recv(1000) == b"airflow.slurm_backfill.items,backfill=job-1:100|g"

"""What is wrong with a job reaches the DAG's notifiers, wherever the task waits."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.sdk import BaseNotifier

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.operators.parquet_aggregate import ParquetAggregateOperator
from airflow_slurm_provider.operators.retry_by_error_class import RetryByErrorClassOperator
from airflow_slurm_provider.operators.slurm_submit import SlurmSubmitOperator
from airflow_slurm_provider.sensors.slurm_array import SlurmArraySensor
from tests.unit.airflow.conftest import ALERT, FINISHED, RUNNING, Coordinator, raise_once

SAID: list[str] = []


class Says(BaseNotifier):
    """Keeps what it was to say."""

    template_fields = ("text",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def notify(self, context: Any) -> None:
        SAID.append(self.text)


@pytest.fixture(autouse=True)
def _said_nothing_yet() -> None:
    SAID.clear()


def anomaly(state: dict[str, Any] | None = None, *alerts: Any) -> dict[str, Any]:
    """The trigger's event."""
    return {
        "status": "anomaly",
        "message": ALERT.message,
        "alerts": [alert.to_dict() for alert in alerts or (ALERT,)],
        "job_id": "job-1",
        "state": state or {},
    }


OPERATORS = [
    lambda **more: SlurmArraySensor(task_id="t", job_id="job-1", **more),
    lambda **more: RetryByErrorClassOperator(task_id="t", job_id="job-1", **more),
    lambda **more: ParquetAggregateOperator(task_id="t", job_id="job-1", **more),
    lambda **more: SlurmSubmitOperator(task_id="t", config={}, wait_for_completion=True, **more),
]


@pytest.mark.parametrize("make", OPERATORS)
def test_notifiers_run_and_the_task_continues_to_wait(
    coordinator: Coordinator, context: dict[str, Any], make: Any
) -> None:
    operator = make(on_anomaly=[Says("{{ alert.kind }}: {{ alert.message }}")])
    state = {"rounds": [1], "batch_script": "#!/bin/bash"}
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute_complete(context, anomaly(state))
    assert SAID == ["stall: no item has ended for 300 s"]
    assert deferred.value.trigger.job_id == "job-1"
    assert deferred.value.trigger.state == state
    assert deferred.value.trigger.tells_anomalies


@pytest.mark.parametrize("make", OPERATORS)
def test_without_notifiers_the_trigger_does_not_fire_for_alerts(
    coordinator: Coordinator, context: dict[str, Any], make: Any
) -> None:
    with pytest.raises(TaskDeferred) as deferred:
        make().execute_complete(context, anomaly())
    assert not deferred.value.trigger.tells_anomalies


def test_each_alert_is_rendered_by_itself(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    other = ALERT.__class__(**{**{n: getattr(ALERT, n) for n in ALERT.__slots__}, "message": "b"})
    sensor = SlurmArraySensor(task_id="t", job_id="job-1", on_anomaly=[Says("{{ alert.message }}")])
    for _ in range(2):
        with pytest.raises(TaskDeferred):
            sensor.execute_complete(context, anomaly({}, ALERT, other))
    assert [ALERT.message, "b"] * 2 == SAID


def test_a_failing_notifier_stops_neither_the_other_notifiers_nor_the_task(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    def fails(_context: Any) -> None:
        raise RuntimeError("the chat is away")

    sensor = SlurmArraySensor(task_id="t", job_id="job-1", on_anomaly=[fails, Says("told")])
    with pytest.raises(TaskDeferred):
        sensor.execute_complete(context, anomaly())
    assert SAID == ["told"]


def test_anomaly_events_do_not_extend_a_sensors_timeout(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    coordinator.polls = [RUNNING]
    sensor = SlurmArraySensor(task_id="t", job_id="job-1", timeout=1000, on_anomaly=[Says("told")])
    with pytest.raises(TaskDeferred) as first:
        sensor.execute(context)
    assert first.value.timeout == timedelta(seconds=1000)
    until = first.value.trigger.state["until"]
    assert until <= time.time() + 1000
    with pytest.raises(TaskDeferred) as second:
        sensor.execute_complete(
            context, anomaly({**first.value.trigger.state, "until": until - 900})
        )
    assert second.value.timeout is not None
    assert timedelta(seconds=1) <= second.value.timeout <= timedelta(seconds=100)


def test_a_wait_in_the_tasks_process_runs_the_notifiers_there(
    coordinator: Coordinator, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [Says("{{ alert.kind }}")]
    raise_once(monkeypatch, ALERT)
    sensor = SlurmArraySensor(task_id="t", job_id="job-1", deferrable=False, on_anomaly=told)
    coordinator.polls = [RUNNING, FINISHED]
    assert not sensor.poke(context).is_done
    assert sensor.poke(context).is_done
    raise_once(monkeypatch, ALERT)
    coordinator.polls = [RUNNING, FINISHED]
    coordinator.retries = [api.RetryResult("job-1", 1, {"network": 4})]
    RetryByErrorClassOperator(
        task_id="t", job_id="job-1", deferrable=False, poll_interval=0, on_anomaly=told
    ).execute(context)
    assert SAID == ["stall", "stall"]

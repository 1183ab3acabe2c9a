"""The trigger fires once, for the right reason, and holds no credentials."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from airflow_slurm_provider.triggers import polling
from airflow_slurm_provider.triggers.polling import default_settle_s
from airflow_slurm_provider.triggers.slurm_array import SlurmArrayTrigger
from slurm_worker.errors import ServiceError, UserError
from tests.unit.airflow.conftest import ALERT, FINISHED, RUNNING, STALLED, Coordinator, raise_once

ARGUMENTS = {
    "job_id": "job-1",
    "slurm_conn_id": "slurm",
    "aws_conn_id": "aws",
    "poll_interval": 0.0,
    "cancel_on_kill": True,
    "failures_allowed": 2,
    "max_resubmissions": 0,
    "tells_anomalies": False,
    "state": {"rounds": [1]},
}


def trigger(**changes: Any) -> SlurmArrayTrigger:
    """A trigger that fires at once: no process has deferred here."""
    return SlurmArrayTrigger(**{**ARGUMENTS, "settle_s": 0.0, **changes})


def fire(trigger: SlurmArrayTrigger) -> list[dict[str, Any]]:
    async def collect() -> list[dict[str, Any]]:
        return [event.payload async for event in trigger.run()]

    return asyncio.run(collect())


def test_the_trigger_does_not_fire_before_the_deferring_process_has_surely_ended(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(polling.asyncio, "sleep", sleep)
    coordinator.polls = [FINISHED]
    (event,) = fire(trigger(settle_s=3600.0))
    assert event["status"] == "finished"
    assert 3000 < sum(slept) <= 3600


@pytest.mark.parametrize(("interval", "seconds"), [("", 7.0), ("1", 7.0), ("30", 32.0)])
def test_the_time_before_the_first_event_follows_airflows_configuration(
    monkeypatch: pytest.MonkeyPatch, interval: str, seconds: float
) -> None:
    if interval:
        monkeypatch.setenv("AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL", interval)
    assert default_settle_s() == seconds


def test_the_trigger_is_serialised_to_its_arguments() -> None:
    path, arguments = SlurmArrayTrigger(**ARGUMENTS).serialize()
    assert path == "airflow_slurm_provider.triggers.slurm_array.SlurmArrayTrigger"
    assert arguments == ARGUMENTS
    assert SlurmArrayTrigger(**arguments).serialize() == (path, arguments)


@pytest.mark.parametrize(
    ("polls", "status"),
    [
        ([RUNNING, RUNNING, FINISHED], "finished"),
        ([RUNNING, STALLED], "stalled"),
        ([UserError("no such job")], "failed"),
        ([ServiceError("ssh"), ServiceError("ssh"), FINISHED], "finished"),
        ([ServiceError("ssh")], "failed"),
    ],
)
def test_the_trigger_fires_once_with_the_status(
    coordinator: Coordinator, polls: list[Any], status: str
) -> None:
    coordinator.polls = polls
    (event,) = fire(trigger())
    assert event["status"] == status
    assert event["state"] == {"rounds": [1]}


def test_a_good_query_resets_the_count_of_failed_ones(coordinator: Coordinator) -> None:
    down = ServiceError("ssh")
    coordinator.polls = [down, down, RUNNING, down, down, RUNNING, FINISHED]
    (event,) = fire(trigger())
    assert event["status"] == "finished"


def test_workers_that_are_gone_are_replaced_up_to_a_limit(coordinator: Coordinator) -> None:
    coordinator.polls = [STALLED, RUNNING, STALLED, STALLED]
    (event,) = fire(trigger(max_resubmissions=2))
    assert coordinator.resubmitted == 2
    assert event["status"] == "stalled"


def test_an_alert_fires_only_for_an_operator_that_has_notifiers(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tells, statuses in ((True, ["anomaly"]), (False, ["finished"])):
        coordinator.polls = [RUNNING, FINISHED]
        raise_once(monkeypatch, ALERT)
        events = fire(trigger(tells_anomalies=tells))
        assert [event["status"] for event in events] == statuses
        assert (events[0]["job_id"], events[0]["state"]) == ("job-1", {"rounds": [1]})
        if tells:
            assert events[0]["alerts"] == [ALERT.to_dict()]


def test_killing_the_waiting_task_cancels_only_with_cancel_on_kill(
    coordinator: Coordinator,
) -> None:
    asyncio.run(SlurmArrayTrigger(**{**ARGUMENTS, "cancel_on_kill": False}).on_kill())
    assert coordinator.cancelled == []
    asyncio.run(SlurmArrayTrigger(**ARGUMENTS).on_kill())
    assert coordinator.cancelled == ["job-1"]

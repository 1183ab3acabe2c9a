"""The operators and the sensor are thin: they call the coordinator and wait well."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    TaskDeferred,
)

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.dashboard_urls import Destination
from airflow_slurm_provider.links import BackfillLink
from airflow_slurm_provider.operators import deferral
from airflow_slurm_provider.operators.parquet_aggregate import ParquetAggregateOperator
from airflow_slurm_provider.operators.retry_by_error_class import RetryByErrorClassOperator
from airflow_slurm_provider.operators.slurm_submit import SlurmSubmitOperator
from airflow_slurm_provider.sensors.slurm_array import SlurmArraySensor
from airflow_slurm_provider.triggers.polling import FAILURES_ALLOWED
from airflow_slurm_provider.triggers.slurm_array import event_of
from slurm_worker.errors import HostUnreachable, ServiceError, UserError
from tests.unit.airflow.conftest import (
    FINISHED,
    RUNNING,
    STALLED,
    Coordinator,
    JobStatus,
    progress,
)

CONFIG = {
    "job_id": "job-1",
    "input": {"path": "s3://lab/items.jsonl", "key": "id"},
    "handler": {"entry": "handler:handle"},
}


def submit(**changes: Any) -> SlurmSubmitOperator:
    return SlurmSubmitOperator(task_id="submit", config=CONFIG, **changes)


def test_submit_returns_the_job_id_and_small_facts(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    assert submit().execute(context) == "job-1"
    assert context["pushed"]["submission"]["slurm_job_ids"] == ["7"]
    assert coordinator.submits == 1


def test_submit_takes_a_path_and_another_job_id(
    coordinator: Coordinator, context: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "job_id: a\ninput: {path: 's3://lab/i.jsonl', key: id}\nhandler: {entry: 'h:f'}\n"
    )
    operator = SlurmSubmitOperator(task_id="submit", config=str(file), job_id="other")
    assert operator.execute(context) == "other"


def test_submit_waits_in_the_triggerer(coordinator: Coordinator, context: dict[str, Any]) -> None:
    with pytest.raises(TaskDeferred) as deferred:
        submit(wait_for_completion=True).execute(context)
    assert deferred.value.trigger.job_id == "job-1"
    event = event_of(FINISHED)
    assert event is not None
    assert submit().execute_complete(context, event) == "job-1"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("config: wrong"), AirflowFailException),
        (ServiceError("down"), AirflowException),
        (HostUnreachable("away"), AirflowException),
    ],
)
def test_user_errors_are_not_retried_and_service_errors_are(
    coordinator: Coordinator,
    context: dict[str, Any],
    error: Exception,
    expected: type[Exception],
) -> None:
    coordinator.error = error
    with pytest.raises(AirflowException) as raised:
        submit().execute(context)
    assert type(raised.value) is expected


def test_a_wrong_config_fails_with_one_line(context: dict[str, Any]) -> None:
    operator = SlurmSubmitOperator(task_id="submit", config={**CONFIG, "workerz": 3})
    with pytest.raises(
        AirflowFailException, match=r"workerz: .*did you mean 'worker' or 'workers'"
    ):
        operator.execute(context)


def test_on_kill_cancels_only_with_cancel_on_kill(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    for cancel, expected in ((False, []), (True, ["job-1"])):
        operator = submit(cancel_on_kill=cancel)
        operator.execute(context)
        operator.on_kill()
        assert coordinator.cancelled == expected


def killed_while_it_waits(
    monkeypatch: pytest.MonkeyPatch, context: dict[str, Any], task: Any
) -> None:
    """As by a signal between two queries."""

    def kill(_seconds: float) -> None:
        task.on_kill()
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", kill)
    with pytest.raises(KeyboardInterrupt):
        task.execute(context)


@pytest.mark.parametrize(
    "kind", [SlurmSubmitOperator, RetryByErrorClassOperator, ParquetAggregateOperator]
)
@pytest.mark.parametrize(("asked", "expected"), [(False, []), (True, ["job-1"])])
def test_a_task_killed_while_it_waits_in_its_own_process_cancels_with_cancel_on_kill(
    coordinator: Coordinator,
    context: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
    asked: bool,
    expected: list[str],
) -> None:
    coordinator.polls = [RUNNING]
    coordinator.retries = [api.RetryResult("job-1", 1, {"network": 1})]
    monkeypatch.setattr(ParquetAggregateOperator, "start_merge", lambda *_: "job-1")
    what: dict[str, Any] = {"job_id": "job-1"}
    if kind is SlurmSubmitOperator:
        what = {"config": CONFIG, "wait_for_completion": True}
    task = kind(task_id="t", deferrable=False, cancel_on_kill=asked, **what)
    killed_while_it_waits(monkeypatch, context, task)
    assert coordinator.cancelled == expected


def test_a_sensor_killed_while_it_pokes_cancels_with_cancel_on_kill(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    coordinator.polls = [RUNNING]
    for asked, expected in ((False, []), (True, ["job-1"])):
        sensor = SlurmArraySensor(
            task_id="wait", job_id="job-1", deferrable=False, cancel_on_kill=asked
        )
        sensor.poke(context)
        sensor.on_kill()
        assert coordinator.cancelled == expected


def test_killing_a_merge_on_the_nodes_never_cancels_the_job_that_is_merged(
    coordinator: Coordinator, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = ParquetAggregateOperator(
        task_id="t", job_id="job-1", deferrable=False, cancel_on_kill=True
    )
    task.on_kill()
    assert coordinator.cancelled == [], "it does not wait yet"
    coordinator.polls = [RUNNING]
    monkeypatch.setattr(ParquetAggregateOperator, "start_merge", lambda *_: "job-1.merge-1")
    killed_while_it_waits(monkeypatch, context, task)
    assert coordinator.cancelled == ["job-1.merge-1"]


def test_a_wait_in_the_tasks_own_process_tolerates_as_many_failed_queries_as_a_trigger(
    coordinator: Coordinator, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    down = ServiceError("ssh is down")
    for failures, ends in ((FAILURES_ALLOWED, True), (FAILURES_ALLOWED + 1, False)):
        slept.clear()
        coordinator.polls = [down, RUNNING, *[down] * failures, FINISHED]
        task = submit(wait_for_completion=True, deferrable=False)
        if ends:
            assert task.execute(context) == "job-1"
        else:
            with pytest.raises(AirflowException, match="ssh is down"):
                task.execute(context)
        assert slept[:5] == [10.0, 10.0, 10.0, 20.0, 30.0], "the more fail, the longer it waits"


def test_a_sensor_pokes_again_after_a_failed_query(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    coordinator.polls = [ServiceError("ssh is down"), FINISHED]
    sensor = SlurmArraySensor(task_id="wait", job_id="job-1", deferrable=False)
    assert not sensor.poke(context).is_done
    assert sensor.poke(context).is_done


def test_the_sensor_does_not_defer_for_a_finished_job(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    result = SlurmArraySensor(task_id="wait", job_id="job-1").execute(context)
    assert result["complete"]


def test_the_sensor_defers_while_tasks_are_left(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    coordinator.polls = [RUNNING]
    with pytest.raises(TaskDeferred):
        SlurmArraySensor(task_id="wait", job_id="job-1").execute(context)


def test_the_sensor_pokes_if_it_is_not_deferrable(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    coordinator.polls = [RUNNING, FINISHED]
    sensor = SlurmArraySensor(task_id="wait", job_id="job-1", deferrable=False)
    assert not sensor.poke(context).is_done
    assert sensor.poke(context).is_done


def test_the_sensor_fails_with_the_reason_when_no_worker_is_left(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    coordinator.polls = [STALLED]
    with pytest.raises(AirflowException, match="no worker is left"):
        SlurmArraySensor(task_id="wait", job_id="job-1", max_resubmissions=0).execute(context)


def test_the_sensor_replaces_workers_that_are_gone_and_continues_to_wait(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    coordinator.polls = [STALLED]
    with pytest.raises(TaskDeferred) as deferred:
        SlurmArraySensor(task_id="wait", job_id="job-1", timeout=60).execute(context)
    assert coordinator.resubmitted == 1
    assert deferred.value.timeout == timedelta(seconds=60)


def test_a_sensor_with_soft_fail_is_skipped(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    coordinator.polls = [JobStatus(progress(done=True, failed={"network": 5}), None, finished=True)]
    sensor = SlurmArraySensor(task_id="wait", job_id="job-1", max_failed_items=0, soft_fail=True)
    with pytest.raises(AirflowSkipException, match="5 of 100 items failed"):
        sensor.execute(context)


@pytest.mark.parametrize(
    ("bounds", "fails"),
    [
        ({}, False),
        ({"max_failed_percent": 4.0}, True),
        ({"max_failed_percent": 5.0}, False),
        ({"max_failed_items": 4}, True),
        ({"max_failed_items": 5}, False),
    ],
)
def test_the_sensor_tolerates_failed_items_up_to_its_limits(
    coordinator: Coordinator, context: dict[str, Any], bounds: dict[str, Any], fails: bool
) -> None:
    coordinator.polls = [JobStatus(progress(done=True, failed={"network": 5}), None, finished=True)]
    sensor = SlurmArraySensor(task_id="wait", job_id="job-1", **bounds)
    if fails:
        with pytest.raises(AirflowFailException, match=r"5 of 100 items failed \(5\.0 %\)"):
            sensor.execute(context)
    else:
        assert sensor.execute(context)["failed"] == {"network": 5}


def test_retry_with_nothing_to_do_ends_at_once(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    result = RetryByErrorClassOperator(task_id="retry", job_id="job-1").execute(context)
    assert result["rounds"] == []
    assert result == {
        "rounds": [],
        "retried": {},
        "cured": {"network": 2},
        "given_up": {"bad_input": 3},
        "ok": 97,
    }


def test_retry_starts_no_round_beyond_max_items(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    coordinator.retries = [api.RetryResult("job-1", n, {"network": 30}) for n in (1, 2)]
    policy = {"network": {"rounds": 9}}
    RetryByErrorClassOperator(
        task_id="retry", job_id="job-1", max_items=100, policy=policy
    ).execute(context)
    assert [call["max_items"] for call in coordinator.asked] == [100, 70, 40]
    assert coordinator.asked[0]["policy"] == policy


def test_retry_starts_no_round_after_max_duration(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    coordinator.retries = [api.RetryResult("job-1", 1, {"network": 1})]
    operator = RetryByErrorClassOperator(
        task_id="retry", job_id="job-1", max_duration=timedelta(hours=1)
    )
    late = {**(event_of(FINISHED) or {}), "state": {"rounds": [1], "retried": {}, "began": 1.0}}
    assert operator.execute_complete(context, late)["rounds"] == [1]
    assert coordinator.asked == []


def test_retry_runs_round_after_round_until_nothing_is_left(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    coordinator.retries = [
        api.RetryResult("job-1", 1, {"network": 5, "timeout": 2}),
        api.RetryResult("job-1", 2, {"network": 1}),
    ]
    coordinator.polls = [RUNNING]
    operator = RetryByErrorClassOperator(task_id="retry", job_id="job-1")
    with pytest.raises(TaskDeferred) as first:
        operator.execute(context)
    finished = {**(event_of(FINISHED) or {}), "state": first.value.trigger.state}
    with pytest.raises(TaskDeferred) as second:
        operator.execute_complete(context, finished)
    finished = {**finished, "state": second.value.trigger.state}
    result = operator.execute_complete(context, finished)
    assert result["rounds"] == [1, 2]
    assert result["retried"] == {"network": 6, "timeout": 2}


def test_retry_stops_at_max_rounds(coordinator: Coordinator, context: dict[str, Any]) -> None:
    coordinator.retries = [api.RetryResult("job-1", n, {"network": 1}) for n in range(1, 9)]
    operator = RetryByErrorClassOperator(task_id="retry", job_id="job-1", max_rounds=3)
    assert operator.execute(context)["rounds"] == [1, 2, 3]


def test_a_round_that_an_earlier_try_started_counts_once(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    coordinator.retries = [
        api.RetryResult("job-1", 1, {"network": 4}, reattached=True),
        api.RetryResult("job-1", 1, {"network": 4}, reattached=True),
    ]
    result = RetryByErrorClassOperator(task_id="retry", job_id="job-1").execute(context)
    assert result["retried"] == {"network": 4}


def test_every_task_links_to_its_job_on_the_dashboard(
    coordinator: Coordinator, context: dict[str, Any]
) -> None:
    coordinator.polls = [FINISHED]
    address = "/slurm/jobs/job-1?conn=slurm_hpc"
    tasks = [
        submit(slurm_conn_id="slurm_hpc"),
        RetryByErrorClassOperator(task_id="retry", job_id="job-1", slurm_conn_id="slurm_hpc"),
        SlurmArraySensor(
            task_id="wait", job_id="job-1", slurm_conn_id="slurm_hpc", deferrable=False
        ),
    ]
    for task in tasks:
        context["pushed"].clear()
        task.execute(context)
        assert context["pushed"]["_link_BackfillLink"] == address
        assert BackfillLink().get_link(task, ti_key=None) == address
    assert BackfillLink().get_link(submit(), ti_key=None) == "", "it is not submitted yet"


def test_the_link_is_kept_after_a_wait(coordinator: Coordinator, context: dict[str, Any]) -> None:
    resumed = submit(wait_for_completion=True)
    resumed.execute_complete(context, {**(event_of(FINISHED) or {}), "job_id": "job-1"})
    assert BackfillLink().get_link(resumed, ti_key=None).startswith("/slurm/jobs/job-1")


@pytest.mark.parametrize(
    ("address", "job_id"),
    [
        ("/slurm/jobs/job-1?conn=s", "job-1"),
        ("https://airflow.example/base/slurm/jobs/job-1?conn=s", "job-1"),
        ("/slurm/jobs/..%2f?conn=s", None),
        ("/slurm/jobs/job-1", None),
        ("https://elsewhere.example/", None),
        ("", None),
    ],
)
def test_only_the_address_of_a_job_is_read_as_a_job(address: str, job_id: str | None) -> None:
    found = Destination.of_address(address)
    assert (found and found.job_id) == job_id


def test_the_rendered_templates_show_the_script_that_sbatch_got(
    coordinator: Coordinator, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferral, "read_script", lambda _services, job_id: f"#SBATCH {job_id}")
    first = submit(wait_for_completion=True)
    with pytest.raises(TaskDeferred) as deferred:
        first.execute(context)
    assert first.batch_script == "#SBATCH job-1"
    resumed = submit(wait_for_completion=True)
    event = {**(event_of(FINISHED) or {}), "state": deferred.value.trigger.state}
    resumed.execute_complete(context, event)
    assert resumed.batch_script == "#SBATCH job-1"
    assert "batch_script" in submit().template_fields
    assert submit().overwrite_rtif_after_execution


def test_a_script_that_cannot_be_read_back_does_not_fail_the_task(
    coordinator: Coordinator, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_services: object, _job_id: str) -> str:
        raise ServiceError("the login node is away")

    monkeypatch.setattr(deferral, "read_script", away)
    task = submit()
    assert task.execute(context) == "job-1"
    assert task.batch_script is None

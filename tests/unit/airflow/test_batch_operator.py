"""A script is submitted once, whatever interrupts the task; a failed one is submitted again."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, TaskDeferred

from airflow_slurm_provider.hooks.slurm import SlurmHook
from airflow_slurm_provider.operators.slurm_submit import SlurmSubmitOperator
from airflow_slurm_provider.slurm.array_state import ArrayKey, ArrayState, Element
from airflow_slurm_provider.slurm.client import SubmissionCancelledError
from airflow_slurm_provider.slurm.states import ElementState
from airflow_slurm_provider.triggers.polling import FAILURES_ALLOWED
from airflow_slurm_provider.triggers.slurm_batch import SlurmBatchTrigger
from slurm_worker.errors import ServiceError

S = ElementState


class Cluster:
    """Arrays by name, as the real client gives them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.scripts: list[str] = []
        self.state = S.RUNNING
        self.cancelled: list[str] = []
        self.withdrawn: set[str] = set()
        self.lose_reply = False
        self.away = 0

    def submit(self, name: str, script: str, folder: str) -> str:
        assert folder == "batch"
        if name in self.withdrawn:
            raise SubmissionCancelledError(name)
        if name not in self.names:
            self.names.append(name)
            self.scripts.append(script)
        if self.lose_reply:
            self.lose_reply = False
            raise ServiceError("connection lost")
        return str(100 + self.names.index(name))

    def array(self, array: ArrayKey) -> ArrayState:
        assert array.slurm_job_id == str(100 + self.names.index(array.name))
        if self.away:
            self.away -= 1
            raise ServiceError("the login node is away")
        alive = 0 if self.state.terminal else 1
        return ArrayState(array.slurm_job_id, {0: Element(self.state, "1:0")}, alive)

    def script(self, name: str, folder: str) -> str:
        return self.scripts[self.names.index(name)]

    def output(self, name: str, folder: str, element: int, lines: int) -> str:
        return f"the end of {element}\n"

    def end(self, name: str, folder: str) -> None:
        assert folder == "batch"
        if name in self.names:
            self.cancelled.append(str(100 + self.names.index(name)))
        else:
            self.withdrawn.add(name)


class Store(dict[str, Any]):
    """Airflow's task state store."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    fake = Cluster()
    monkeypatch.setattr(SlurmHook, "get_conn", lambda _self: fake)
    monkeypatch.setattr(SlurmHook, "array", lambda _self, array, _age: fake.array(array))
    return fake


@pytest.fixture
def context(context: dict[str, Any]) -> dict[str, Any]:
    context["ti"].map_index = -1
    context["ti"].stats_tags = {}
    return {**context, "task_state_store": Store()}


def operator(**arguments: Any) -> SlurmSubmitOperator:
    given = {"command": "hostname", "deferrable": False, "poll_interval": 0.0, **arguments}
    return SlurmSubmitOperator(task_id="t", **given)


def test_a_script_is_submitted_waited_for_and_its_array_returned(
    cluster: Cluster, context: dict[str, Any]
) -> None:
    cluster.state = S.COMPLETED
    assert operator().execute(context) == "100"
    assert cluster.scripts[0].endswith("\nhostname\n")
    assert context["pushed"]["submission"]["slurm_job_id"] == "100"


def test_words_of_a_command_are_quoted_for_the_shell(
    cluster: Cluster, context: dict[str, Any]
) -> None:
    cluster.state = S.COMPLETED
    operator(command=["echo", "a b", "$(c)"]).execute(context)
    assert cluster.scripts[0].endswith("\necho 'a b' '$(c)'\n")


def test_a_failed_element_fails_the_task_with_its_output(
    cluster: Cluster, context: dict[str, Any]
) -> None:
    cluster.state = S.FAILED
    with pytest.raises(AirflowException, match=r"1 of 1 elements failed \(1 FAILED\)"):
        operator().execute(context)


def test_a_wait_survives_failed_status_queries(cluster: Cluster, context: dict[str, Any]) -> None:
    cluster.state = S.COMPLETED
    cluster.away = FAILURES_ALLOWED
    assert operator().execute(context) == "100"
    cluster.away = FAILURES_ALLOWED + 1
    with pytest.raises(AirflowException, match="the login node is away"):
        operator(durable=False).execute(context)


def test_a_retry_continues_with_an_array_that_runs(
    cluster: Cluster, context: dict[str, Any]
) -> None:
    for _ in range(2):
        with pytest.raises(TaskDeferred) as deferred:
            operator(deferrable=True).execute(context)
        assert deferred.value.trigger.slurm_job_id == "100"
        assert deferred.value.kwargs["batch_script"] == cluster.scripts[0]
    assert len(cluster.names) == 1


def test_a_submission_whose_reply_was_lost_is_found_by_the_token_in_its_name(
    cluster: Cluster, context: dict[str, Any]
) -> None:
    cluster.lose_reply = True
    cluster.state = S.COMPLETED
    with pytest.raises(AirflowException, match="connection lost"):
        operator().execute(context)
    assert operator().execute(context) == "100"
    assert len(cluster.names) == 1


def test_a_retry_after_a_failure_submits_again(cluster: Cluster, context: dict[str, Any]) -> None:
    cluster.state = S.FAILED
    with pytest.raises(AirflowException):
        operator().execute(context)
    with pytest.raises(AirflowException):
        operator().execute(context)
    assert len(cluster.names) == 2


def test_a_retry_does_not_run_a_succeeded_script_again(
    cluster: Cluster, context: dict[str, Any]
) -> None:
    cluster.state = S.COMPLETED
    assert operator().execute(context) == operator().execute(context) == "100"
    assert len(cluster.names) == 1


def test_a_task_that_is_not_durable_submits_each_time(
    cluster: Cluster, context: dict[str, Any]
) -> None:
    cluster.state = S.COMPLETED
    assert operator(durable=False).execute(context) == "100"
    assert operator(durable=False).execute(context) == "101"


def test_elements_of_mapped_tasks_have_names_of_their_own(
    cluster: Cluster, context: dict[str, Any]
) -> None:
    cluster.state = S.COMPLETED
    context["ti"].map_index = 0
    operator().execute(context)
    assert cluster.names[0].startswith("d.t.0.")


def test_killing_the_task_cancels_only_with_cancel_on_kill(
    cluster: Cluster, context: dict[str, Any]
) -> None:
    for asked, cancelled in ((False, []), (True, ["100"])):
        task = operator(wait_for_completion=False, cancel_on_kill=asked)
        task.execute(context)
        task.on_kill()
        assert cluster.cancelled == cancelled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"command": None}, "nothing to run given; give exactly one of config, script, command"),
        ({"script": "true"}, "script and command given"),
        ({"config": {"job_id": "x"}}, "config and command given"),
        (
            {"command": None, "config": {}, "slurm": {}},
            "slurm: can't be used with config; move it into",
        ),
        ({"items": [1]}, "items: can't be used with command; remove it"),
        ({"array": "x"}, "array: 'x' is not a list of elements"),
        ({"slurm": {"mem": "lots"}}, "slurm.mem: 'lots' is not a size"),
    ],
)
def test_conflicting_arguments_fail_without_a_retry(
    cluster: Cluster, context: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(AirflowFailException, match=message):
        operator(**arguments).execute(context)
    assert cluster.names == []


def test_the_trigger_is_serialised_to_its_arguments() -> None:
    arguments = {
        "slurm_job_id": "7",
        "name": "n",
        "slurm_conn_id": "s",
        "aws_conn_id": None,
        "poll_interval": 1.0,
        "cancel_on_kill": True,
        "failures_allowed": 2,
    }
    path, found = SlurmBatchTrigger(**arguments).serialize()
    assert (path.rsplit(".", 1)[1], found) == ("SlurmBatchTrigger", arguments)


def test_the_trigger_waits_for_the_end_and_returns_the_output(cluster: Cluster) -> None:
    cluster.names.append("n")
    trigger = SlurmBatchTrigger("100", "n", slurm_conn_id="slurm")
    assert trigger.poll() is None
    cluster.state = S.FAILED
    event = trigger.poll()
    assert event is not None
    assert (event["status"], event["states"]) == ("failed", {"FAILED": 1})
    assert event["output"] == "100_0: the end of 0"
    trigger.cancel()
    assert cluster.cancelled == ["100"]


def test_a_task_that_is_killed_while_it_submits_leaves_no_array(
    cluster: Cluster, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = operator(cancel_on_kill=True)
    real = cluster.submit

    def killed_before_sbatch(name: str, script: str, folder: str) -> str:
        monkeypatch.setattr(cluster, "submit", real)
        task.on_kill()
        return real(name, script, folder)

    monkeypatch.setattr(cluster, "submit", killed_before_sbatch)
    with pytest.raises(AirflowException):
        task.execute(context)
    assert cluster.names == []


def test_a_try_after_a_killed_try_submits_under_a_new_name(
    cluster: Cluster, context: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    test_a_task_that_is_killed_while_it_submits_leaves_no_array(cluster, context, monkeypatch)
    cluster.state = S.COMPLETED
    assert operator().execute(context) == "100"
    assert len(cluster.withdrawn) == 1
    assert cluster.names[0] not in cluster.withdrawn

"""Both example DAGs in real Airflow, triggered through its API as a user would."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping

import pytest

from airflow_slurm_provider.coordinator.services import Services
from tests.e2e.conftest import Slurmctl
from tests.stack.airflow_api import AirflowApi, DagRun, failing_tasks
from tests.stack.demo import DAGS, reset_planes_api, run_dags
from tests.stack.facts import JobFacts, job_facts
from tests.stack.settings import ROOT
from tests.stack.state_folder import state_folder

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

FLIGHTS = 336_776
PLANES = 3_322


@pytest.fixture(scope="module")
def began() -> float:
    return time.time()


@pytest.fixture(scope="module")
def runs(environment: Mapping[str, str], began: float) -> dict[str, DagRun]:
    reset_planes_api(environment["PLANES_API_URL"])
    api = AirflowApi.of_stack(environment)
    ended = run_dags(api, DAGS, timeout=800)
    for run in ended.values():
        logs = "\n".join(api.log_tail(run, task) for task in failing_tasks(run))
        assert run.state == "success", f"{run.summary()}\n{logs}"
    return ended


@pytest.fixture(scope="module")
def facts(
    runs: dict[str, DagRun], environment: Mapping[str, str], services: Services
) -> dict[str, JobFacts]:
    api = AirflowApi.of_stack(environment)
    return {
        dag_id: job_facts(services, api.return_value(run, "submit")) for dag_id, run in runs.items()
    }


@pytest.mark.parametrize("dag_id", DAGS)
def test_items_in_are_ok_or_failed_and_rows_are_ok(facts: dict[str, JobFacts], dag_id: str) -> None:
    assert facts[dag_id].problems() == []


def test_every_flight_is_accounted_for(facts: dict[str, JobFacts]) -> None:
    flights = facts["backfill_flights"]
    assert flights.items == FLIGHTS
    assert set(flights.error_rows) == {"bad_input"}
    assert flights.table.tasks == {"done": sum(flights.table.tasks.values())}


def test_every_plane_is_cured_by_retry(facts: dict[str, JobFacts]) -> None:
    planes = facts["backfill_planes_api"]
    assert planes.items == PLANES
    assert planes.table.rounds > 1, "retry by error class had no work: the server never failed"
    assert planes.rows == PLANES
    assert planes.error_rows == {}


def test_the_retrys_result_and_errors_tell_the_story(
    runs: dict[str, DagRun], environment: Mapping[str, str], slurmctl: Slurmctl
) -> None:
    run = runs["backfill_planes_api"]
    api = AirflowApi.of_stack(environment)
    result = api.return_value(run, "retry")
    assert (result["given_up"], result["ok"]) == ({}, PLANES)
    assert result["retried"].keys() >= {"network", "timeout"}
    assert sum(result["cured"].values()) == sum(result["retried"].values())
    groups = slurmctl.json("errors", api.return_value(run, "submit"))["groups"]
    told = Counter[str]()
    for each in groups:
        assert each["count"] == 0, "each was cured"
        assert each["nodes"]
        told[each["error_class"]] += each["superseded"]
    assert told == result["retried"]


def test_nothing_that_had_succeeded_was_fetched_again(
    runs: dict[str, DagRun], began: float
) -> None:
    assert runs["backfill_planes_api"].state == "success"
    log = state_folder(ROOT) / "planes-api.jsonl"
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    fetched = Counter(
        each["tailnum"] for each in requests if each["time"] >= began and each["status"] == "200"
    )
    assert len(fetched) == PLANES
    assert set(fetched.values()) == {1}


def test_a_function_and_a_list_become_a_dataset(
    environment: Mapping[str, str], services: Services
) -> None:
    api = AirflowApi.of_stack(environment)
    (run,) = run_dags(api, ("slurm_map_squares",), timeout=300).values()
    logs = "\n".join(api.log_tail(run, task) for task in failing_tasks(run))
    assert run.state == "success", f"{run.summary()}\n{logs}"
    published = api.return_value(run, "square")
    assert (published["items"], published["ok"], published["rows"]) == (1000, 1000, 1000)
    assert api.return_value(run, "total") == 1000
    facts = job_facts(services, published["job_id"])
    assert facts.problems() == []

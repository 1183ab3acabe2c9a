"""`@task.slurm_map` ships the function as it stands, and the items as they are."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG, task

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.decorators.slurm_map import SlurmMapOperator
from airflow_slurm_provider.hooks.slurm import SlurmHook
from slurm_worker.errors import UserError
from tests.unit.coordinator.fakes import services


def square(number):  # type: ignore[no-untyped-def]
    # Shipped as it stands.
    return {"square": number * number}


def told(item, context=None):  # type: ignore[no-untyped-def]
    return {"told": f"{item['id']} of {context}"}


@pytest.fixture(autouse=True)
def edges(monkeypatch: pytest.MonkeyPatch) -> Services:
    found = services()
    monkeypatch.setattr(SlurmHook, "services", lambda _self, **_: found)
    return found


def operator(function: Any, *arguments: Any, **options: Any) -> SlurmMapOperator:
    return SlurmMapOperator(
        task_id="map", python_callable=function, op_args=arguments, job_id="job-1", **options
    )


def handler_of(config: Any) -> Any:
    """The module that is shipped, imported."""
    path = Path(config.spec.handler.code) / "slurm_map_handler.py"
    spec = importlib.util.spec_from_file_location("slurm_map_handler", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_plain_values_become_items_and_the_function_gets_them_back(edges: Services) -> None:
    mapped = operator(square, [3, 4], workers=5, bundle=7, options={"worker": {"tries": 2}})
    config = mapped._config()
    assert (config.spec.workers, config.spec.bundle, config.spec.worker.tries) == (5, 7, 2)
    key = config.spec.input.path.removeprefix("s3://lab/")
    items = [json.loads(line) for line in edges.objects.get(key).splitlines()]  # type: ignore[union-attr]  # it is there
    assert items == [{"id": 3, "value": 3}, {"id": 4, "value": 4}]
    assert [handler_of(config).handle(item, None) for item in items] == [
        {"square": 9},
        {"square": 16},
    ]


def test_objects_come_as_they_are_with_the_context_where_it_is_wanted() -> None:
    mapped = operator(told, [{"id": "a"}])
    config = mapped._config()
    assert handler_of(config).handle({"id": "a"}, "ctx") == {"told": "a of ctx"}


def test_a_path_is_the_input() -> None:
    config = operator(told, "s3://lab/items.parquet", item_key="user")._config()
    assert config.spec.input.path == "s3://lab/items.parquet"
    assert config.spec.input.key == "user"


def test_the_same_items_are_the_same_input() -> None:
    one, two = (operator(square, [3, 4])._config() for _ in "ab")
    assert one.spec.identity() == two.spec.identity()
    other = operator(square, [3, 5])._config()
    assert other.spec.identity() != one.spec.identity()


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([], "items: there are none"),
        ([{"id": 1}, 2.5], "items: number 2 is float"),
        ([{"id": 1, "x": {1, 2}}], "items: number 1 is not JSON"),
    ],
)
def test_what_can_be_no_item_is_named(items: list[Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        operator(square, items)._config()


def test_failed_items_fail_the_task_unless_they_are_allowed_for() -> None:
    progress = {"job_id": "job-1", "items": 10, "failed": {"network": 2}}
    with pytest.raises(AirflowFailException, match="2 of 10 items failed"):
        operator(square, [1])._publish({}, progress)


def test_it_is_a_task_decorator() -> None:
    with DAG("d", schedule=None):

        @task.slurm_map(job_id="j", workers=2)  # type: ignore[attr-defined]  # a provider's
        def double(number):  # type: ignore[no-untyped-def]
            return {"double": 2 * number}

        mapped = double([1, 2]).operator
    assert isinstance(mapped, SlurmMapOperator)
    assert "task.slurm_map" not in mapped._source(plain=True)
    assert handler_of(mapped._config()).handle({"id": 1, "value": 1}, None) == {"double": 2}

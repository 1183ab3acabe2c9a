"""Before Airflow 3.3 a batch script runs too, but a retry submits it again."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import airflow.sdk
import pytest

from airflow_slurm_provider.operators import batch

NAME = "ResumableJobMixin"


@pytest.fixture
def before_33(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as it is where Airflow has no such mixin."""
    found = airflow.sdk.__getattr__

    def without(name: str) -> Any:
        if name == NAME:
            raise AttributeError(name)
        return found(name)

    monkeypatch.setattr(airflow.sdk, "__getattr__", without)
    monkeypatch.delitem(airflow.sdk.__dict__, NAME, raising=False)
    spec = importlib.util.spec_from_file_location("batch_before_33", batch.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Base:
    """What the next class of an operator does with its arguments."""

    def __init__(self, **options: Any) -> None:
        self.options = options


def test_the_replacement_submits_waits_and_returns_the_result(
    before_33: ModuleType,
) -> None:
    said: list[str] = []

    class Job(before_33.ResumableJobMixin, Base):  # type: ignore[name-defined,misc]  # made at run time
        def submit_job(self, context: Any) -> str:
            said.append("submit")
            return "100"

        def poll_until_complete(self, job: str, context: Any) -> None:
            said.append(f"wait for {job}")

        def get_job_result(self, job: str, context: Any) -> str:
            return f"result of {job}"

    job = Job(task_id="t", durable=True)
    assert [job.execute_resumable({}), job.execute_resumable({})] == ["result of 100"] * 2
    assert said == ["submit", "wait for 100"] * 2
    assert job.options == {"task_id": "t"}


def test_from_airflow_33_on_airflows_own_mixin_is_used() -> None:
    found = getattr(airflow.sdk, NAME, None)
    assert found is None or issubclass(batch.BatchScriptOperator, found)

"""Parameters that operators share reach each of them the way Airflow passes parameters."""

from __future__ import annotations

from typing import Any

import pytest
from airflow.sdk import DAG, task
from airflow.serialization.serialized_objects import DagSerialization

from airflow_slurm_provider.operators.parquet_aggregate import ParquetAggregateOperator
from airflow_slurm_provider.operators.retry_by_error_class import RetryByErrorClassOperator
from airflow_slurm_provider.operators.slurm_submit import SlurmSubmitOperator
from airflow_slurm_provider.sensors.slurm_array import SlurmArraySensor

DEFAULTS = {
    "slurm_conn_id": "slurm_gpu",
    "poll_interval": 3.0,
    "deferrable": False,
    "max_resubmissions": 7,
    "wait_for_completion": True,
    "env": {"A": "1"},
    "durable": False,
}


def square(item: Any) -> Any:
    return item


@pytest.fixture
def dag() -> DAG:
    with DAG("parameters", default_args=DEFAULTS) as dag:
        submit = SlurmSubmitOperator(task_id="submit", config={"job_id": "x"}, poll_interval=5.0)
        SlurmArraySensor(task_id="wait", job_id="x", timeout=60)
        RetryByErrorClassOperator(task_id="retry", job_id="x")
        ParquetAggregateOperator(task_id="aggregate", job_id=submit.output)
        SlurmSubmitOperator.partial(task_id="scripts", slurm={"mem": "1G"}, durable=False).expand(
            command=["hostname", "true"]
        )
        task.slurm_map(square, job_id="squares", item_key="n")([1, 2])
    return dag


@pytest.mark.parametrize("name", ["submit", "wait", "retry", "aggregate", "square"])
def test_default_arguments_of_the_dag_reach_every_class(dag: DAG, name: str) -> None:
    found = dag.get_task(name)
    assert (found.slurm_conn_id, found.max_resubmissions) == ("slurm_gpu", 7)
    assert found.poll_interval == (5.0 if name == "submit" else 3.0)
    assert found.deferrable is False


def test_default_arguments_apply_to_backfills_and_to_scripts(dag: DAG) -> None:
    submit = dag.get_task("submit")
    assert (submit.wait_for_completion, submit.env) == (True, {"A": "1"})


def test_a_mapped_task_gets_what_partial_and_expand_give(dag: DAG) -> None:
    mapped = dag.get_task("scripts").unmap({"command": "hostname"})
    assert (mapped.command, mapped.slurm, mapped.durable) == ("hostname", {"mem": "1G"}, False)
    assert (mapped.slurm_conn_id, mapped.poll_interval) == ("slurm_gpu", 3.0)


def test_a_misspelt_parameter_is_refused_when_the_dag_is_parsed() -> None:
    with pytest.raises(TypeError, match="confg"):
        SlurmSubmitOperator(task_id="submit", confg={})
    with pytest.raises(TypeError, match="comand"):
        SlurmSubmitOperator.partial(task_id="submit", comand="x").expand(array=["0-1"])


def test_the_dag_survives_serialisation_with_its_templates(dag: DAG) -> None:
    found = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    assert set(found.task_dict) == {*dag.task_dict}
    assert found.task_dict["submit"].config == {"job_id": "x"}
    templates = found.task_dict["submit"].template_fields
    assert tuple(templates) == SlurmSubmitOperator.template_fields
    assert dag.get_task("aggregate").upstream_task_ids == {"submit"}

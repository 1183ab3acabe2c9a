"""What Airflow reads of the provider is valid, and the example DAGs load."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import airflow
import jsonschema

from airflow_slurm_provider import get_provider_info

EXAMPLES = Path(__file__).resolve().parents[3] / "example_dags"


def test_the_provider_info_is_valid_by_airflows_schema() -> None:
    schema = Path(airflow.__file__).with_name("provider_info.schema.json")
    jsonschema.validate(get_provider_info(), json.loads(schema.read_text()))


def test_every_module_and_class_that_it_names_exists() -> None:
    info = get_provider_info()
    for kind in ("operators", "sensors", "hooks", "triggers"):
        for entry in info[kind]:
            for module in entry["python-modules"]:
                importlib.import_module(module)
    classes = [entry["class-name"] for entry in info["task-decorators"]]
    classes += [entry["plugin-class"] for entry in info["plugins"]]
    for path in (*info["extra-links"], *classes):
        module, _, name = path.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))
    for connection in info["connection-types"]:
        module, _, name = connection["hook-class-name"].rpartition(".")
        assert getattr(importlib.import_module(module), name).conn_type == "slurm"


def test_the_example_dags_load_without_an_error() -> None:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(str(EXAMPLES))
    assert bag.import_errors == {}
    for dag_id in ("backfill_flights", "backfill_planes_api"):
        order = [task.task_id for task in bag.dags[dag_id].topological_sort()]
        assert order == ["submit", "wait", "retry", "aggregate"]
    assert "slurm_map_squares" in bag.dags

"""The reference is whole: each key, command and document has its place, and schemas are current."""

from __future__ import annotations

import importlib
import json
import re
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from airflow_slurm_provider import get_provider_info
from airflow_slurm_provider.cli.app import COMMANDS
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from airflow_slurm_provider.coordinator.spec.site import Site
from slurm_worker.errors import ErrorClass
from tests.stack.settings import ROOT
from tests.unit.docs.pages import DOCS

REFERENCE = DOCS / "reference"


@pytest.fixture
def models() -> ModuleType:
    return importlib.import_module("models")


@pytest.mark.parametrize("file", ["config.schema.json", "site.schema.json"])
def test_the_schemas_that_are_kept_are_those_of_the_models(models: ModuleType, file: str) -> None:
    schema = models.SCHEMAS[file]()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert (REFERENCE / file).read_text() == models.as_text(schema), (
        "run: python docs/_extensions/models.py"
    )


def test_a_key_that_is_no_option_of_sbatch_says_what_it_is(models: ModuleType) -> None:
    keys = models.SCHEMAS["config.schema.json"]()["$defs"]["SlurmOptions"]["properties"]
    for key in ("grace", "setup", "throttle", "command_prefix", "extra_args", "time", "begin"):
        assert not keys[key]["description"].startswith("--"), key


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({"worker": {"item_timeout": "5 sec"}}, {"worker": {"item_timeout": "5s"}}),
        ({"slurm": {"memory": "2G"}}, {"slurm": {"mem": "2G"}}),
        ({"retry": {"network": "always"}}, {"retry": {"network": "never"}}),
        ({"retry": {"netwrok": 3}}, {"retry": {"network": 3}}),
        ({"bundel": 5}, {"bundle": 5}),
    ],
)
def test_an_editor_that_knows_the_schema_finds_the_mistake(
    models: ModuleType, wrong: dict[str, Any], right: dict[str, Any]
) -> None:
    job = {"job_id": "j", "input": {"path": "x.csv", "key": "id"}, "handler": {"entry": "a:b"}}
    checked = jsonschema.Draft202012Validator(models.job_schema())
    assert checked.is_valid({**job, **right})
    assert not checked.is_valid({**job, **wrong})


@pytest.mark.parametrize("root", [JobSpec, Site])
def test_each_section_of_the_configuration_is_on_its_page(
    models: ModuleType, root: type[BaseModel]
) -> None:
    page = (REFERENCE / "configuration.md").read_text()
    for model in models.models_of(root):
        assert f"{{config-keys}} {model.__module__}.{model.__name__}\n" in page


@pytest.mark.parametrize("root", [JobSpec, Site])
def test_each_key_of_the_configuration_says_what_it_is(
    models: ModuleType, root: type[BaseModel]
) -> None:
    silent = [
        f"{model.__name__}.{name}"
        for model in models.models_of(root)
        for name in model.model_fields
        if not models.meanings(model).get(name)
    ]
    assert silent == []


def test_each_command_has_its_document_on_the_page() -> None:
    documents = json.loads((REFERENCE / "output.schema.json").read_text())["$defs"]
    page = (REFERENCE / "output.md").read_text()
    shown = re.findall(r"\{json-document\} ([\w-]+)\n", page)
    assert {name for name in COMMANDS if name in documents} <= {*shown}
    assert {*shown} <= {*documents}


def test_each_class_that_airflow_is_told_of_is_on_the_page() -> None:
    page = (REFERENCE / "airflow.md").read_text()
    info = get_provider_info()
    modules = [
        module
        for kind in ("operators", "sensors", "hooks", "triggers")
        for each in info[kind]
        for module in each["python-modules"]
    ]
    assert [each for each in modules if f"autoclass:: {each}." not in page] == []
    assert [each for each in info["extra-links"] if f"autoclass:: {each}\n" not in page] == []


def test_the_guide_to_retries_names_each_error_class() -> None:
    guide = (DOCS / "guides" / "retries.md").read_text()
    assert [each.value for each in ErrorClass if f"`{each.value}`" not in guide] == []


def is_key(schema: dict[str, Any], steps: list[str]) -> bool:
    """Whether a schema knows a key; ``<name>`` stands for any that users choose."""
    where = schema
    for step in steps:
        if "$ref" in where:
            where = schema["$defs"][where["$ref"].rpartition("/")[2]]
        properties = where.get("properties", {})
        if step.startswith("<"):
            where = where.get("additionalProperties") or {}
        elif step in properties:
            where = properties[step]
        else:
            return False
    return True


def test_the_guide_to_configuration_names_keys_that_are_there(models: ModuleType) -> None:
    guide = (DOCS / "guides" / "configuration.md").read_text().split("## The site")[0]
    named, before = [], ""
    for row in re.findall(r"^\| (`[^|]*) \|", guide, re.MULTILINE):
        for key in re.findall(r"`([^`]+)`", row):
            # `limits.<name>.burst`, `.scope`: the second is beside the first.
            before = f"{before.rpartition('.')[0]}{key}" if key.startswith(".") else key
            named.append(before)
    assert len(named) > 40
    schema = models.job_schema()
    assert [key for key in named if not is_key(schema, key.split("."))] == []


def test_all_measurements_are_on_their_page() -> None:
    page = (DOCS / "project" / "measurements.md").read_text()
    files = [each.name for each in (ROOT / "benchmarks").glob("*.md")]
    assert [name for name in files if f"../../benchmarks/{name}\n" not in page] == []

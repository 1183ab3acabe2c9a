"""The reference of the configuration, from its models: tables of keys, and JSON schemas.

``{config-keys} PATH`` in a page becomes a table of a pydantic model's keys, or of the options of a
dataclass, as its docstring describes them. As a program, this module writes the two schemas in
``docs/reference``. A test fails if they differ from the models.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from docutils import nodes
from docutils.statemachine import StringList
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from airflow_slurm_provider.coordinator.spec.site import Site
from airflow_slurm_provider.slurm.options import SlurmOptions

REFERENCE = Path(__file__).resolve().parents[1] / "reference"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: Enums; the reference has no section for them.
_NAMES = ("/ErrorClass", "/ElementState")
_UNITS = {"duration": "ms|s|min", "rate": "/", "size": "KB"}


# --- tables -------------------------------------------------------------------


class ConfigKeys(SphinxDirective):
    """A table of the keys of a model, or of the options of a dataclass."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table, parsed as the page's own Markdown."""
        module, _, name = self.arguments[0].rpartition(".")
        lines = table_of(getattr(importlib.import_module(module), name))
        holder = nodes.container()
        self.state.nested_parse(StringList(lines, self.arguments[0]), 0, holder)
        return holder.children


def table_of(model: type) -> list[str]:
    """The Markdown of a table of keys."""
    rows = _of_model(model) if issubclass(model, BaseModel) else _of_options(model)
    head = ["| key | takes | default | meaning |", "| --- | --- | --- | --- |"]
    return [*head, *("| " + " | ".join(each) + " |" for each in rows)]


def _of_model(model: type[BaseModel]) -> list[tuple[str, str, str, str]]:
    properties = model.model_json_schema()["properties"]
    said = meanings(model)
    return [
        (
            f"`{info.alias or name}`",
            _escaped(takes(properties[info.alias or name], info.alias or name)),
            _default(info),
            _escaped(said.get(name, "")),
        )
        for name, info in model.model_fields.items()
    ]


def _of_options(options: type) -> list[tuple[str, str, str, str]]:
    texts = meanings(options)
    return [
        (
            f"`{each.name}`",
            _kind(each),
            "the site's" if each.default in (None, ()) else f"`{each.default}`",
            _escaped(texts.get(each.name, f"`--{each.name.replace('_', '-')}`")),
        )
        for each in dataclasses.fields(options)
    ]


def meanings(model: type) -> dict[str, str]:
    """The text below each key. Pydantic could attach it, but reads the source at each start."""
    texts = ModuleAnalyzer.for_module(model.__module__).find_attr_docs()
    return {
        name: "\n".join(lines).strip().replace("``", "`")
        for (owner, name), lines in texts.items()
        if owner == model.__name__
    }


def takes(schema: dict[str, Any], key: str = "") -> str:
    """The values that a JSON schema allows, in words; a section links to its `key` on the page."""
    if "$ref" in schema:
        return "a name" if schema["$ref"].endswith(_NAMES) else f"a mapping, [below](#{key})"
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{each}`" for each in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return _either([each for each in schema["anyOf"] if each.get("type") != "null"])
    kind = {
        "string": "text",
        "integer": "a whole number",
        "number": "a number",
        "boolean": "`true`, `false`",
        "object": "a mapping",
        "array": "a list",
    }[schema["type"]]
    return kind + _bounds(schema)


def _either(choices: list[dict[str, Any]]) -> str:
    written = next((each["pattern"] for each in choices if "pattern" in each), "")
    for unit, sign in _UNITS.items():
        if sign in written:
            return f"a {unit}, or a number"
    return " or ".join(takes(each) for each in choices)


def _bounds(schema: dict[str, Any]) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    above = schema.get("exclusiveMinimum")
    said = [
        *([f"from {least:g}"] if least is not None else []),
        *([f"above {above:g}"] if above is not None else []),
        *([f"up to {most:,g}"] if most is not None else []),
    ]
    return f" {' '.join(said)}" if said else ""


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.default_factory() if info.default_factory else info.default  # type: ignore[call-arg]  # none takes the data
    assert value is not PydanticUndefined
    if value in ("", None, (), {}, []):
        return "none"
    if isinstance(value, BaseModel):
        return "see there"
    return f"`{value:,g}`" if isinstance(value, float) else f"`{value}`"


def _kind(field: dataclasses.Field[Any]) -> str:
    if "tuple" in str(field.type):
        return "a list of lines"
    return "a whole number" if "int" in str(field.type) else "text"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


# --- schemas ------------------------------------------------------------------


def job_schema() -> dict[str, Any]:
    """The JSON schema of a job's YAML."""
    schema = _schema_of(JobSpec)
    rule = schema["$defs"]["RetryRule"]
    schema["$defs"]["RetryRule"] = {
        "anyOf": [{"const": "never"}, {"const": False}, {"type": "integer", "minimum": 0}, rule]
    }
    schema["$defs"]["SlurmOptions"] = options_schema()
    for section in (schema, schema["$defs"]["AggregateSection"]):
        section["properties"]["slurm"] = {
            "$ref": "#/$defs/SlurmOptions",
            "description": section["properties"]["slurm"]["description"],
        }
    return {"$schema": _DIALECT, **schema, "title": "A job of airflow-slurm-provider"}


def site_schema() -> dict[str, Any]:
    """The JSON schema of a site file."""
    return {"$schema": _DIALECT, **_schema_of(Site), "title": "A site of slurmctl"}


def _schema_of(root: type[BaseModel]) -> dict[str, Any]:
    schema = root.model_json_schema()
    for model in models_of(root):
        section = schema if model is root else schema["$defs"][model.__name__]
        for name, text in meanings(model).items():
            alias = model.model_fields[name].alias or name
            section["properties"][alias]["description"] = text
    return schema


def options_schema() -> dict[str, Any]:
    """The JSON schema of the ``slurm`` section."""
    kinds: dict[str, dict[str, Any]] = {
        "a list of lines": {"type": "array", "items": {"type": "string"}},
        "a whole number": {"type": "integer"},
        "text": {"type": ["string", "integer"]},
    }
    texts = meanings(SlurmOptions)
    return {
        "type": "object",
        "description": "Options of sbatch.",
        "additionalProperties": False,
        "properties": {
            each.name: {
                **({"type": "string"} if each.name == "time" else kinds[_kind(each)]),
                "description": texts.get(each.name, f"--{each.name.replace('_', '-')}"),
            }
            for each in dataclasses.fields(SlurmOptions)
        },
    }


SCHEMAS = {"config.schema.json": job_schema, "site.schema.json": site_schema}


def as_text(schema: dict[str, Any]) -> str:
    """The text of a schema's file."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def models_of(root: type[BaseModel]) -> list[type[BaseModel]]:
    """A model and all models of its keys, each one once."""
    found: list[type[BaseModel]] = []
    waiting: list[object] = [root]
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, type) and issubclass(each, BaseModel):
            if each not in found:
                found.append(each)
                waiting += [info.annotation for info in each.model_fields.values()]
        elif get_origin(each) in (dict, list, tuple, Union, types.UnionType):
            waiting += get_args(each)
    return found


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.add_directive("config-keys", ConfigKeys)
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    for file, schema_of in SCHEMAS.items():
        (REFERENCE / file).write_text(as_text(schema_of()))

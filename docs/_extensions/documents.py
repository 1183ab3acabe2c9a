"""The reference of the ``--json`` output of commands, from the schema that tests check it with.

``{json-document} NAME`` in a page becomes a table of the names in a command's document.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FILE = Path(__file__).resolve().parents[1] / "reference" / "output.schema.json"


class JsonDocument(SphinxDirective):
    """A table of the names in one document."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table, parsed as the page's own Markdown."""
        self.env.note_dependency(str(FILE))
        lines = table_of(self.arguments[0])
        holder = nodes.container()
        self.state.nested_parse(StringList(lines, FILE.name), 0, holder)
        return holder.children


def definitions() -> dict[str, Any]:
    """All documents, and their shared definitions, by name."""
    found: dict[str, Any] = json.loads(FILE.read_text())["$defs"]
    return found


def table_of(name: str) -> list[str]:
    """The Markdown of one document."""
    schema = definitions()[name]
    said = [f"{schema['description']}", ""] if schema.get("description") else []
    head = ["| name | holds | meaning |", "| --- | --- | --- |"]
    rows = [
        f"| `{path}` | {_kind(each)} | {each.get('description', '').replace('|', chr(92) + '|')} |"
        for path, each in _names(schema, "")
    ]
    return [*said, *(head + rows if rows else [f"It is {_kind(schema)}."])]


def _names(schema: dict[str, Any], before: str) -> list[tuple[str, dict[str, Any]]]:
    """The names in a document, each once; a nested name follows a dot."""
    found: dict[str, dict[str, Any]] = {}
    for choice in [schema, *schema.get("oneOf", []), *schema.get("anyOf", [])]:
        if "$ref" in choice:
            choice = definitions()[choice["$ref"].rpartition("/")[2]]
            found.update(_names(choice, before))
        for name, each in choice.get("properties", {}).items():
            found.setdefault(before + name, each)
            inner = each.get("items", each) if isinstance(each.get("items", each), dict) else each
            if "properties" in inner:
                mark = "[]." if inner is not each else "."
                found.update(_names(inner, f"{before}{name}{mark}"))
    return list(found.items())


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _reference(schema["$ref"].rpartition("/")[2])
    for choice in ("oneOf", "anyOf"):
        if choice in schema:
            return " or ".join(dict.fromkeys(map(_kind, schema[choice])))
    if "enum" in schema or "const" in schema:
        return ", ".join(
            f"`{json.dumps(each)}`" for each in schema.get("enum", [schema.get("const")])
        )
    given = schema.get("type", "anything")
    kinds = given if isinstance(given, list) else [given]
    if kinds == ["array"] and "items" in schema:
        return f"list of {_kind(schema['items'])}"
    return " or ".join(kinds)


def _reference(name: str) -> str:
    return name if "properties" in definitions()[name] else _kind(definitions()[name])


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.add_directive("json-document", JsonDocument)
    return {"parallel_read_safe": True}

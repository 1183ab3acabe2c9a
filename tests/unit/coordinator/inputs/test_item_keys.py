"""The key of an item: of several columns, of a nested field, or made from the item or its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_slurm_provider.coordinator.inputs.item_keys import Origin, key_rule
from airflow_slurm_provider.coordinator.spec.input_section import InputSection
from airflow_slurm_provider.coordinator.spec.job_spec import load_config
from slurm_worker.errors import UserError
from tests.unit.coordinator.inputs.reading import keys, read, refusal

JOB = {"job_id": "j", "handler": {"entry": "handler:handle"}}


def test_several_columns_are_joined(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "UA", "b": 15}\n{"a": "x/y%", "b": 2}\n')
    assert keys(path=str(tmp_path / "a.jsonl"), key=["a", "b"]) == ["UA/15", "x%2Fy%25/2"]


@given(st.lists(st.tuples(st.text("/%2F5a", min_size=1), st.text("/%2F5a", min_size=1))))
def test_other_values_of_several_columns_are_another_key(pairs: list[tuple[str, str]]) -> None:
    rule = key_rule(InputSection(path="a", key=("a", "b")))
    found = {rule({"a": a, "b": b}, {}, Origin("a", "a"), 1) for a, b in pairs}
    assert len(found) == len(set(pairs))


def test_a_nested_field_is_a_key_unless_a_column_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"meta": {"id": 1}}\n{"meta": {"id": 2}, "meta.id": 3}\n{"meta": {}}\n')
    message = refusal(lambda: read(path=str(path), key="meta.id"))
    assert "row 3 has no column 'meta.id'" in message
    path.write_text('{"meta": {"id": 1}}\n{"meta": {"id": 2}, "meta.id": 3}\n')
    assert keys(path=str(path), key="meta.id") == ["1", "3"]


def test_a_digest_is_the_same_for_the_same_item(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1, "b": 2}\n{"b": 2, "a": 1}\n{"a": "1", "b": 2}\n')
    first, second, third = keys(path=str(tmp_path / "a.jsonl"), generate_key="digest")
    assert first == second != third
    assert len(first) == 32


def test_a_row_is_named_by_its_file_below_the_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for name in ("x/a.csv", "b.csv"):
        (tmp_path / name).write_text("n\n1\n1\n")
    found = keys(path=str(tmp_path), generate_key="row")
    assert found == ["b.csv:1", "b.csv:2", "x/a.csv:1", "x/a.csv:2"]


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"path": "a.csv"}, "needs either key, the column that names each item, or generate_key"),
        ({"path": "a.csv", "key": "id", "generate_key": "row"}, "needs either key"),
        ({"path": "a.csv", "generate_key": "rows"}, "input.generate_key: 'rows' is not valid"),
        ({"path": [], "key": "id"}, "input.path: [] is neither text nor a list of texts"),
        ({"path": ["a.csv", ""], "key": "id"}, "input.path: is empty"),
        ({"path": 5, "key": "id"}, "input.path: 5 is neither text nor a list of texts"),
        ({"path": "a.csv", "key": "id", "query": "x", "where": "y"}, "has query with where"),
        (
            {"path": "a.csv", "key": "id", "csv": {"encoding": "utf-9"}},
            "'utf-9' is not an encoding",
        ),
        ({"path": "a.csv", "key": "id", "csv": {"header": ["a", "a"]}}, "has the column 'a' twice"),
    ],
)
def test_a_wrong_section_is_refused_in_one_line(section: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config({**JOB, "input": section})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_are_below_the_config_or_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    paths = ["~/a.csv", "/b.csv", "s3://lab/c.csv", "https://lab.example/d.csv"]
    found = load_config({**JOB, "input": {"path": paths, "key": "id"}}).spec.input
    assert found.paths == ("/home/ada/a.csv", *paths[1:])


def test_a_job_of_an_earlier_release_keeps_its_identity() -> None:
    plain = InputSection(path="/lab/a.csv", key="id")
    assert plain.identity() == ["/lab/a.csv", "id", None]
    assert InputSection(path="/lab/a.csv", key="id", where="x").identity() != plain.identity()

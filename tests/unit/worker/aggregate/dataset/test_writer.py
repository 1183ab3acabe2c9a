"""A file's name tells apart all that decides the file's content."""

from __future__ import annotations

from typing import Any

import pytest

from slurm_worker.aggregate.columns.converter import Converter
from slurm_worker.aggregate.columns.types import Schema, parse_schema
from slurm_worker.aggregate.dataset.writer import DatasetWriter, FileGroup
from slurm_worker.aggregate.options import AggregateOptions

COLUMNS = parse_schema({"a": "json", "b": "int64"})


@pytest.mark.parametrize(
    ("columns", "options", "inputs", "writer"),
    [
        (parse_schema({"a": "string", "b": "int64"}), {}, ["x"], "w"),
        (parse_schema({"a": "map<string, int64>", "b": "int64"}), {}, ["x"], "w"),
        (parse_schema({"b": "int64", "a": "json"}), {}, ["x"], "w"),
        (COLUMNS, {"rename": {"a": "c"}}, ["x"], "w"),
        (COLUMNS, {"rename": {"a": "b", "b": "a"}}, ["x"], "w"),
        (COLUMNS, {"row_group_size": 10}, ["x"], "w"),
        (COLUMNS, {}, ["y"], "w"),
        (COLUMNS, {}, ["x", "x"], "w"),
        (COLUMNS, {}, ["x"], "v"),
    ],
)
def test_every_change_of_a_file_changes_its_name(
    columns: Any, options: dict[str, Any], inputs: list[str], writer: str
) -> None:
    assert file_name(writer, columns, inputs, **options) != file_name("w", COLUMNS, ["x"])


def test_columns_that_are_renamed_to_each_other_change_the_files_name() -> None:
    """By the dataset's names and types alone both are the same."""
    one = file_name("w", parse_schema({"a": "int64", "b": "int64"}), ["x"])
    swapped = parse_schema({"b": "int64", "a": "int64"})
    assert file_name("w", swapped, ["x"], rename={"a": "b", "b": "a"}) != one


def file_name(writer: str, columns: Schema, inputs: list[str], **options: Any) -> str:
    converter = Converter(columns, declared=True, keyed=False)
    merged = DatasetWriter(writer, converter, AggregateOptions(**options))
    return merged.file_name(FileGroup(inputs, lambda: iter([])))

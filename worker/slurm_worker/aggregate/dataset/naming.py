"""A file's name is the hash of everything that decides its content: other content, other name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from slurm_worker.aggregate.columns.types import Schema
from slurm_worker.aggregate.options import AggregateOptions


def file_name(
    writer: str, columns: Schema, options: AggregateOptions, inputs: Sequence[str]
) -> str:
    """The name of a file of the dataset.

    Args:
        writer: names the code that writes it.
        columns: the declared types, and not Arrow's: `json` and `string` are the same to Arrow,
            and are written differently. By the names that they have in the input.
        options: how the file is laid out.
        inputs: digests of what it is made of, in order.
    """
    names = options.names
    types = [[name, names.get(name, name), column.to_list()] for name, column in columns.items()]
    return part_name([writer, types, options.row_group_size, list(inputs)])


def part_name(content: list[Any]) -> str:
    """The name of a file with this content."""
    return f"part-{json_sha256(content)[:16]}.parquet"


def json_sha256(value: list[Any]) -> str:
    """The SHA-256 of a value's JSON text, in hex."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()

"""A file's name is the hash of all that decides what is in it, so it is never taken for another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from slurm_worker.aggregate.columns.types import Schema
from slurm_worker.aggregate.options import AggregateOptions


def file_name(
    writer: str, columns: Schema, options: AggregateOptions, inputs: Sequence[str]
) -> str:
    """The name of a file of the dataset.

    Args:
        writer: names the code that writes it.
        columns: their types as declared, and not as Arrow has them: `json` and `string` are the
            same to Arrow, and are written differently. By the names that they have in the input.
        options: how the file is laid out.
        inputs: digests of what it is made of, in order.
    """
    names = options.names
    types = [[name, names.get(name, name), each.to_list()] for name, each in columns.items()]
    return f"part-{hash16([writer, types, options.row_group_size, list(inputs)])}.parquet"


def renamed(schema: pa.Schema, options: AggregateOptions) -> pa.Schema:
    """The schema by the dataset's names."""
    names = options.names
    return pa.schema([each.with_name(names.get(each.name, each.name)) for each in schema])


def hash16(what: list[Any]) -> str:
    """Sixteen characters that tell one list from another."""
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

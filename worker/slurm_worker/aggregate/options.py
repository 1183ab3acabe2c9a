"""How a dataset is laid out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass

from slurm_worker.aggregate.columns.types import Schema
from slurm_worker.errors import UserError
from slurm_worker.results.parts import KEY_FIELD

_MEBIBYTE = 1 << 20
#: Types whose values can be written in a folder's name and read back unchanged.
_PARTITIONS = {"string", "int32", "int64", "uint64", "bool", "date"}
#: Characters that separate folders, or names from values, or that readers treat specially.
_NO_FOLDER = re.compile(r"[^\w .,+@-]")


@dataclass(frozen=True, slots=True)
class AggregateOptions:
    """How the dataset is laid out."""

    #: Column types by name, without the key's; inferred from all rows where None
    schema: dict[str, str] | None = None
    #: Other names for columns: ``{"arr delay": "arrival_delay"}``. `schema` has the names that the
    #: handler returns; all options below have the names of the dataset
    rename: dict[str, str] | None = None
    #: Columns that become folders, ``year=2013/``, and leave the files
    partition_by: tuple[str, ...] = ()
    #: Columns by which rows are sorted; in the input's order where empty
    sort_by: tuple[str, ...] = ()
    rows_per_file: int = 5_000_000  #: about how many rows a file holds
    #: About how many bytes of committed parts a file is made of; Parquet is seldom larger than its
    #: compressed parts
    file_size: int = 512 * _MEBIBYTE
    row_group_size: int = 131_072  #: about how many rows a row group holds
    memory: int = 1024 * _MEBIBYTE  #: about the most bytes of memory in use

    @property
    def sorted(self) -> bool:
        """Whether rows leave the input's order."""
        return bool(self.partition_by or self.sort_by)

    @property
    def names(self) -> dict[str, str]:
        """The dataset's names of columns that have another name in the parts."""
        return self.rename or {}

    def named(self, columns: Schema) -> dict[str, str]:
        """Columns and their types as text, by the dataset's names."""
        return {self.names.get(name, name): str(column) for name, column in columns.items()}

    def check(self, columns: Schema, *, keyed: bool = True) -> None:
        """Check that the columns that the options name exist.

        A `keyed` dataset has a column of keys of its own, which is not among `columns`.

        Raises:
            UserError: naming the option, the column and what to do.
        """
        for name in self.names:
            _check_column("rename", name, columns)
        named = self.named(columns)
        if len(named) < len(columns) or (keyed and KEY_FIELD in named):
            raise UserError(
                "aggregate.rename: two columns would have the same name; choose another name"
            )
        for name in self.sort_by:
            _check_column("sort_by", name, [*named, KEY_FIELD] if keyed else named)
        for name in self.partition_by:
            _check_column("partition_by", name, named)
            if named[name] not in _PARTITIONS:
                raise UserError(
                    f"aggregate.partition_by: column {name!r} has type {named[name]}; use a column "
                    "of strings, whole numbers, bools or dates"
                )
            _check_folder(name, named)
        if len(set(self.partition_by)) < len(self.partition_by):
            raise UserError("aggregate.partition_by: names a column twice; name it once")
        if len(self.partition_by) == len(named) > 0:
            raise UserError(
                "aggregate.partition_by: names every column; leave at least one for the files"
            )


def _check_column(option: str, name: str, columns: Collection[str]) -> None:
    if name not in columns:
        near = difflib.get_close_matches(name, columns, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the columns are {', '.join(columns)}"
        raise UserError(f"aggregate.{option}: there is no column {name!r}; {hint}")


def _check_folder(name: str, columns: Collection[str]) -> None:
    """Refuse a name that can't be in a folder's name, or that readers take for another."""
    if not name or name.startswith((".", "_")) or _NO_FOLDER.search(name):
        raise UserError(
            f"aggregate.partition_by: {name!r} can't be the name of a folder that readers open; "
            "rename the column: use letters, digits and underscores, and begin with a letter"
        )
    same = [other for other in columns if other != name and other.casefold() == name.casefold()]
    if same:
        raise UserError(
            f"aggregate.partition_by: {name!r} and {same[0]!r} differ only in case, and DuckDB "
            "can't tell them apart; rename one of them"
        )

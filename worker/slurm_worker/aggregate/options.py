"""How a dataset is laid out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass

from slurm_worker.aggregate.columns.types import Kind, Schema
from slurm_worker.errors import UserError
from slurm_worker.results.parts import KEY_FIELD

_MEBIBYTE = 1 << 20
#: What may stand in a folder's name, and be read back from it as it was.
_PARTITIONS = (Kind.STRING, Kind.INT32, Kind.INT64, Kind.UINT64, Kind.BOOL, Kind.DATE)
#: What separates folders, their names from their values, or is read as something else.
_NO_FOLDER = re.compile(r"[^\w .,+@-]")


@dataclass(frozen=True, slots=True)
class AggregateOptions:
    """How the dataset is laid out.

    Args:
        schema: column types by name, without the key's; inferred from all rows where None.
        rename: other names for columns: ``{"arr delay": "arrival_delay"}``. `schema` has the
            names that the handler returns, all below those of the dataset.
        partition_by: columns that become folders, ``year=2013/``, and leave the files.
        sort_by: columns by which rows are sorted; in the input's order where empty.
        rows_per_file: about how many rows a file holds.
        file_size: about how many bytes of committed parts a file is made of; Parquet is
            seldom larger than its compressed parts.
        row_group_size: about how many rows a row group holds.
        memory: about the most bytes that may be in use.
    """

    schema: dict[str, str] | None = None
    rename: dict[str, str] | None = None
    partition_by: tuple[str, ...] = ()
    sort_by: tuple[str, ...] = ()
    rows_per_file: int = 5_000_000
    file_size: int = 512 * _MEBIBYTE
    row_group_size: int = 131_072
    memory: int = 1024 * _MEBIBYTE

    @property
    def sorted(self) -> bool:
        """Whether rows leave the input's order."""
        return bool(self.partition_by or self.sort_by)

    @property
    def names(self) -> dict[str, str]:
        """The dataset's names of columns that have another one in the parts."""
        return self.rename or {}

    def check(self, columns: Schema, *, keyed: bool = True) -> None:
        """Look whether the columns that are named are there.

        Args:
            columns: the schema, without the key's column where there is one.
            keyed: whether the dataset has a column of keys of its own.

        Raises:
            UserError: naming the option, the column and the mend.
        """
        for name in self.names:
            _check_column("rename", name, columns)
        named = {self.names.get(name, name): each for name, each in columns.items()}
        if len(named) < len(columns) or (keyed and KEY_FIELD in named):
            raise UserError("aggregate.rename: gives two columns one name; choose another")
        for name in self.sort_by:
            _check_column("sort_by", name, [*named, KEY_FIELD] if keyed else named)
        for name in self.partition_by:
            _check_column("partition_by", name, named)
            if named[name].kind not in _PARTITIONS:
                raise UserError(
                    f"aggregate.partition_by: {name!r} is a {named[name]}; use a column of "
                    "strings, whole numbers, bools or dates"
                )
            _check_folder(name, named)
        if len(set(self.partition_by)) < len(self.partition_by):
            raise UserError("aggregate.partition_by: names a column twice; name it once")
        if len(self.partition_by) == len(named) > 0:
            raise UserError("aggregate.partition_by: names every column; leave one for the files")


def _check_column(option: str, name: str, columns: Collection[str]) -> None:
    if name not in columns:
        near = difflib.get_close_matches(name, columns, 1)
        mend = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(columns)}"
        raise UserError(f"aggregate.{option}: {name!r} is no column; {mend}")


def _check_folder(name: str, columns: Collection[str]) -> None:
    """Refuse a name that is no part of a folder's name, or that readers take for another."""
    if not name or name.startswith((".", "_")) or _NO_FOLDER.search(name):
        raise UserError(
            f"aggregate.partition_by: {name!r} can't be in the name of a folder that readers look "
            "into; rename it to letters, digits and underscores, with a letter first"
        )
    alike = [each for each in columns if each != name and each.casefold() == name.casefold()]
    if alike:
        raise UserError(
            f"aggregate.partition_by: {name!r} and {alike[0]!r} differ only in case, and DuckDB "
            "takes them for one; rename one of them"
        )

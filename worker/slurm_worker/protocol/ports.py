"""The edges: what the table, the object store and the clock promise.

All other code uses these protocols only. Each has a real form (`backends/dynamodb.py`,
`backends/s3.py`, `backends/clock.py`) and an in-memory twin (`testing.py`), and one contract
suite runs over both. Each call is one request to AWS unless its docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

#: What a row may hold. Numbers are ints: nothing in the table needs a fraction.
Value: TypeAlias = "str | int | bool | list[Value] | dict[str, Value] | None"
Row: TypeAlias = dict[str, Value]


def int_of(row: Row, name: str) -> int:
    """An integer attribute; 0 where the row lacks it."""
    value = row.get(name)
    return value if isinstance(value, int) else 0


def str_of(row: Row, name: str) -> str:
    """A string attribute; empty where the row lacks it."""
    value = row.get(name)
    return value if isinstance(value, str) else ""


@dataclass(frozen=True, slots=True)
class Statement:
    """A conditional update of a row: what to change, when it is allowed, and the values of both.

    Attribute names are written as ``#name`` and values as ``:name``. Statements are made by
    the functions of `protocol/statements` and `rate_limits/statements.py` only, so
    that a value that is missing is an argument that is missing.
    """

    name: str  #: what requests are counted as; statements of one name have the same two texts
    update: str
    condition: str
    #: By name; exactly those that the texts use.
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Applied:
    """The write was applied; `row` is the row after it."""

    row: Row


@dataclass(frozen=True, slots=True)
class Refused:
    """The condition did not hold; `row` is the current row, None where there is none."""

    row: Row | None


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object in a listing; `size` in bytes, `modified` and `tag` as in `StoredObject`."""

    key: str
    size: int
    modified: float
    tag: str = ""  #: empty in a store that does not list it


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it was read."""

    body: bytes
    tag: str  #: the ``ETag``, for `ObjectStore.put_if`; other bytes have another tag
    modified: float  #: when it was written, in seconds since the epoch, by the store's clock


class Rows(Protocol):
    """The table's four verbs.

    A write's reply can be lost after the write was applied. The client library then repeats
    the request, so `Refused` may be the answer to a write that succeeded. Each caller says
    what it does about that.
    """

    def get(self, pk: str, sk: str, *, consistent: bool = True) -> Row | None:
        """Read one row."""

    def put_new(self, row: Row) -> Applied | Refused:
        """Write `row` (with its ``pk`` and ``sk``) if no such row exists."""

    def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
        """Apply `statement` to a row, if its condition holds."""

    def query(
        self,
        pk: str,
        *,
        after: str = "",
        limit: int | None = None,
        consistent: bool = False,
        backwards: bool = False,
    ) -> Iterator[Row]:
        """Rows of a partition in order of ``sk``, past `after`; one request per page.

        With `backwards`, rows come from the last one down to `after`.
        """

    def delete(self, pk: str, sk: str) -> None:
        """Delete a row, if there."""


class ObjectStore(Protocol):
    """One S3 bucket."""

    def verify(self) -> None:
        """Raise a UserError if the bucket is not there or not ours to read."""

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        """The object's bytes, or a range of them; None where there is none."""

    def put(self, key: str, body: bytes) -> None:
        """Write an object, replacing any."""

    def put_new(self, key: str, body: bytes) -> bool:
        """Write an object if none is there (``If-None-Match: *``).

        False also if this call's first try was applied and its reply lost: the caller reads
        the object to know.
        """

    def read(self, key: str) -> StoredObject | None:
        """The object with its tag and age; None where there is none."""

    def put_if(self, key: str, body: bytes, tag: str) -> bool:
        """Replace an object if it still has this tag (``If-Match``).

        False also if this call's first try was applied and its reply lost: the caller reads
        the object to know. A store that ignores the condition replaces it anyway.
        """

    def list(self, prefix: str) -> Iterator[str]:
        """Keys under `prefix`, in order; one request per thousand."""

    def entries(self, prefix: str) -> Iterator[ObjectInfo]:
        """The same objects with size and age, for the same requests."""

    def delete(self, key: str) -> None:
        """Delete an object, if there."""

    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete objects, if there; one request per thousand."""

    def size(self, key: str) -> int | None:
        """Bytes of the object; None where there is none."""

    def upload(self, key: str, path: str) -> None:
        """Write a local file as an object, in several requests where it is large."""

    def download(self, key: str, path: str) -> None:
        """Write an object to a local file, without holding it in memory.

        Raises:
            Missing: if there is none.
        """

    def copy(self, source: str, key: str) -> None:
        """Copy an object to another key, within the store.

        Raises:
            Missing: if there is none.
        """


#: Events of log lines that a status query looks for: a failure of an item, and of a task.
ITEM_FAILED, TASK_FAILED = "item failed", "task failed"


class Logger(Protocol):
    """Writes log lines with named fields: structlog's bound logger, as far as it is used."""

    def debug(self, event: str, **fields: object) -> None:
        """Log a line for someone who looks for a fault."""

    def info(self, event: str, **fields: object) -> None:
        """Log a line."""

    def warning(self, event: str, **fields: object) -> None:
        """Log something unexpected that the work continues after."""

    def error(self, event: str, **fields: object) -> None:
        """Log a failure."""

    def exception(self, event: str, **fields: object) -> None:
        """Log a failure, with the traceback of the exception that is being handled."""


class Clock(Protocol):
    """Time of day for leases, and a timer that is never set back.

    Safety depends on neither: a wrong clock wastes work and corrupts nothing.
    """

    def now(self) -> float:
        """Seconds since the epoch, as the table's servers see it."""

    def boot_time(self) -> float:
        """Seconds on a timer that also runs while the machine sleeps."""

    def sleep(self, seconds: float) -> None:
        """Wait."""

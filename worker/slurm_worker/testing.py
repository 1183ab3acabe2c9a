"""In-memory twins of the edges: the same promises, no AWS.

`MemoryRows` evaluates the real condition and update expressions (the subset that our
statements use), so tests and simulations run the real protocol. The twins are part of the
product: use them to test your own tools against a job's table.
"""

from __future__ import annotations

import hashlib
import operator
import re
import threading
import time
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from slurm_worker.errors import Missing
from slurm_worker.protocol import ports
from slurm_worker.protocol.ports import Applied, ObjectInfo, Refused, Row, StoredObject, Value

_Part = TypeVar("_Part")
_TOKEN = re.compile(r"\s*(<>|<=|>=|[=<>+\-(),]|[#:]?\w+)")
_COMPARE: dict[str, Callable[[Value, Value], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": lambda a, b: _ordered(a, b, operator.lt),
    "<=": lambda a, b: _ordered(a, b, operator.le),
    ">": lambda a, b: _ordered(a, b, operator.gt),
    ">=": lambda a, b: _ordered(a, b, operator.ge),
}


class _Held(NamedTuple):
    row: Row
    nested: tuple[str, ...]  #: attributes that are lists or maps

    def copy(self) -> Row:
        """A row that its reader may change."""
        copied = self.row.copy()
        for name in self.nested:
            copied[name] = _copied_value(copied[name])
        return copied


class MemoryRows:
    """`ports.Rows` in a dict; safe to share between threads."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, _Held]] = {}
        #: The partitions' sort keys, in order.
        self._order: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        #: Requests made, by operation, for tests of request budgets.
        self.requests: dict[str, int] = {}

    def get(self, pk: str, sk: str, *, consistent: bool = True) -> Row | None:  # noqa: ARG002
        """See `ports.Rows.get`."""
        with self._lock:
            self._count("get")
            found = self._rows.get(pk, {}).get(sk)
            return found and found.copy()

    def put_new(self, row: Row) -> Applied | Refused:
        """See `ports.Rows.put_new`."""
        pk, sk = str(row["pk"]), str(row["sk"])
        with self._lock:
            self._count("put_new")
            existing = self._rows.get(pk, {}).get(sk)
            if existing is not None:
                return Refused(existing.copy())
            return Applied(self._set(pk, sk, row).copy())

    def update(self, pk: str, sk: str, statement: ports.Statement) -> Applied | Refused:
        """See `ports.Rows.update`."""
        with self._lock:
            self._count(statement.name)
            existing = self._rows.get(pk, {}).get(sk)
            before = existing.row if existing else {}
            if not _Parser(statement.condition, before, statement.values).condition():
                return Refused(existing and existing.copy())
            after = _Parser(statement.update, before, statement.values).update()
            after.update(pk=pk, sk=sk)
            return Applied(self._set(pk, sk, after).copy())

    def query(
        self,
        pk: str,
        *,
        after: str = "",
        limit: int | None = None,
        consistent: bool = False,  # noqa: ARG002  memory is always consistent
        backwards: bool = False,
    ) -> Iterator[Row]:
        """See `ports.Rows.query`."""
        with self._lock:
            self._count("query")
            order = self._order.get(pk, [])
            chosen = order[bisect_right(order, after) :]
            if backwards:
                chosen.reverse()
            found = [self._rows[pk][sk].copy() for sk in chosen[:limit]]
        yield from found

    def delete(self, pk: str, sk: str) -> None:
        """See `ports.Rows.delete`."""
        with self._lock:
            self._count("delete")
            if self._rows.get(pk, {}).pop(sk, None) is not None:
                self._order[pk].remove(sk)

    def all_rows(self) -> list[Row]:
        """Every row of the table, by partition and in the order of their sort keys."""
        with self._lock:
            keys = [(pk, sk) for pk, order in self._order.items() for sk in order]
            return [self._rows[pk][sk].copy() for pk, sk in keys]

    def _set(self, pk: str, sk: str, row: Row) -> _Held:
        partition = self._rows.setdefault(pk, {})
        if sk not in partition:
            insort(self._order.setdefault(pk, []), sk)
        nested = tuple(name for name, value in row.items() if isinstance(value, (list, dict)))
        held = partition[sk] = _Held(_Held(row, nested).copy(), nested)
        return held

    def _count(self, verb: str) -> None:
        self.requests[verb] = self.requests.get(verb, 0) + 1


class MemoryObjects:
    """`ports.ObjectStore` in a dict; safe to share between threads."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        #: When each was written, in seconds since the epoch.
        self.modified: dict[str, float] = {}
        self._lock = threading.Lock()

    def verify(self) -> None:
        """See `ports.ObjectStore.verify`: memory is always there."""

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        """See `ports.ObjectStore.get`."""
        body = self.objects.get(key)
        return body and body[start : None if length is None else start + length]

    def put(self, key: str, body: bytes) -> None:
        """See `ports.ObjectStore.put`."""
        with self._lock:
            self._set(key, body)

    def put_new(self, key: str, body: bytes) -> bool:
        """See `ports.ObjectStore.put_new`."""
        with self._lock:
            if key in self.objects:
                return False
            self._set(key, body)
            return True

    def read(self, key: str) -> StoredObject | None:
        """See `ports.ObjectStore.read`."""
        with self._lock:
            if (body := self.objects.get(key)) is None:
                return None
            return StoredObject(body, _tag(body), self.modified.get(key, 0.0))

    def put_if(self, key: str, body: bytes, tag: str) -> bool:
        """See `ports.ObjectStore.put_if`."""
        with self._lock:
            standing = self.objects.get(key)
            if standing is None or _tag(standing) != tag:
                return False
            self._set(key, body)
            return True

    def list(self, prefix: str) -> Iterator[str]:
        """See `ports.ObjectStore.list`."""
        with self._lock:
            found = sorted(key for key in self.objects if key.startswith(prefix))
        yield from found

    def entries(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ports.ObjectStore.entries`."""
        for key in self.list(prefix):
            body = self.objects.get(key, b"")
            yield ObjectInfo(key, len(body), self.modified.get(key, 0.0), _tag(body))

    def delete(self, key: str) -> None:
        """See `ports.ObjectStore.delete`."""
        with self._lock:
            self.objects.pop(key, None)

    def delete_many(self, keys: Iterable[str]) -> None:
        """See `ports.ObjectStore.delete_many`."""
        for key in keys:
            self.delete(key)

    def size(self, key: str) -> int | None:
        """See `ports.ObjectStore.size`."""
        body = self.objects.get(key)
        return None if body is None else len(body)

    def upload(self, key: str, path: str) -> None:
        """See `ports.ObjectStore.upload`."""
        self.put(key, Path(path).read_bytes())

    def download(self, key: str, path: str) -> None:
        """See `ports.ObjectStore.download`."""
        Path(path).write_bytes(self._existing(key))

    def copy(self, source: str, key: str) -> None:
        """See `ports.ObjectStore.copy`."""
        self.put(key, self._existing(source))

    def _existing(self, key: str) -> bytes:
        body = self.objects.get(key)
        if body is None:
            raise Missing(f"{key}: there is no such object")
        return body

    def _set(self, key: str, body: bytes) -> None:
        self.objects[key] = bytes(body)
        self.modified[key] = time.time()


def _tag(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


class ManualClock:
    """A clock that moves only by `advance` and `sleep`."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._now = self._start = now

    def now(self) -> float:
        """See `ports.Clock.now`."""
        return self._now

    def boot_time(self) -> float:
        """See `ports.Clock.boot_time`."""
        return self._now - self._start

    def sleep(self, seconds: float) -> None:
        """Move the time forward instead of waiting."""
        self.advance(max(0.0, seconds))

    def advance(self, seconds: float) -> None:
        """Move the time forward."""
        self._now += seconds


def _copied_value(value: Value) -> Value:
    # Ten times as fast as `copy.deepcopy`.
    if isinstance(value, list):
        return [_copied_value(item) for item in value]
    if isinstance(value, dict):
        return {name: _copied_value(item) for name, item in value.items()}
    return value


def _ordered(a: Value, b: Value, compare: Callable[..., bool]) -> bool:
    # DynamoDB compares only values of one type; an absent attribute compares false.
    if isinstance(a, bool) or isinstance(b, bool) or type(a) is not type(b):
        return False
    return compare(a, b)


@lru_cache(maxsize=100)
def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text)


class _Parser:
    """Recursive descent over DynamoDB's expression grammar, evaluating as it goes."""

    def __init__(self, text: str, row: Row, values: Mapping[str, Value]) -> None:
        self._tokens = _tokens(text)
        self._row = row
        self._values = values
        self._at = 0

    def condition(self) -> bool:
        return any(self._separated("OR", lambda: all(self._separated("AND", self._comparison))))

    def update(self) -> Row:
        after = dict(self._row)
        while self._peek() is not None:
            verb = self._next()
            if verb == "SET":
                after.update(self._separated(",", self._assignment))
            elif verb == "REMOVE":
                for name in self._separated(",", self._next):
                    after.pop(name[1:], None)
            else:
                raise ValueError(f"unexpected {verb!r} in an update expression")
        return after

    def _assignment(self) -> tuple[str, Value]:
        name = self._next()[1:]
        self._expect("=")
        return name, self._sum()

    def _comparison(self) -> bool:
        word = self._peek()
        if word == "(":
            (result,) = self._arguments(self.condition)
            return result
        if word in ("attribute_exists", "attribute_not_exists"):
            self._next()
            (name,) = self._arguments(self._next)
            return (name.lstrip("#") in self._row) is (word == "attribute_exists")
        # A comparison with a missing attribute is false, except <>.
        left, compare = self._operand(), _COMPARE[self._next()]
        return compare(left, self._operand())

    def _sum(self) -> Value:
        left = self._operand()
        while self._peek() in ("+", "-"):
            sign = 1 if self._next() == "+" else -1
            right = self._operand()
            if not isinstance(left, int) or not isinstance(right, int):
                raise ValueError("DynamoDB adds numbers only")
            left = left + sign * right
        return left

    def _operand(self) -> Value:
        word = self._next()
        if word == "if_not_exists":
            self._expect("(")
            name = self._next()[1:]
            self._expect(",")
            default = self._sum()
            self._expect(")")
            return self._row.get(name, default)
        if word == "list_append":
            first, second = self._arguments(self._sum)
            if not isinstance(first, list) or not isinstance(second, list):
                raise ValueError("list_append takes lists")
            return first + second
        if word.startswith(":"):
            return self._values[word[1:]]
        return self._row.get(word[1:])

    def _arguments(self, part: Callable[[], _Part]) -> list[_Part]:
        self._expect("(")
        found = self._separated(",", part)
        self._expect(")")
        return found

    def _separated(self, separator: str, part: Callable[[], _Part]) -> list[_Part]:
        """Every part: all are read, whatever the first ones give."""
        found = [part()]
        while self._peek() == separator:
            self._next()
            found.append(part())
        return found

    def _peek(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]

    def _expect(self, word: str) -> None:
        if (found := self._next()) != word:
            raise ValueError(f"expected {word!r}, found {found!r}")

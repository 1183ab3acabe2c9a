"""What the processes share: rows, objects and arrays, as a value that is cheap to keep and compare.

Rows and objects are numbered by their content, once for a whole search. A state holds the numbers.
So a request that meets the same content again takes its result from memory. Conditions and updates
are evaluated by the product's own in-memory table, on the one row that they are about.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from airflow_slurm_provider.slurm.array_state import ArrayState, Element
from airflow_slurm_provider.slurm.client import SubmissionCancelledError
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.protocol.ports import (
    Applied,
    ObjectInfo,
    Refused,
    Row,
    Statement,
    StoredObject,
)
from slurm_worker.testing import MemoryObjects, MemoryRows
from tests.simulator.exhaustive.process import EPOCH, Request
from tests.simulator.rules import broken_rule
from tests.simulator.stores.rows import statement_name

#: Slurm's first number for an array.
_FIRST_ID = 100


class Array(NamedTuple):
    """An array that Slurm has accepted."""

    name: str
    script: str
    cancelled: bool = False


class Shared(NamedTuple):
    """The state of all services. A 0 is a row or an object that is not there."""

    rows: tuple[int, ...] = ()  #: numbers of contents, by place
    objects: tuple[int, ...] = ()
    arrays: tuple[Array, ...] = ()
    withdrawn: tuple[str, ...] = ()  #: names that no array will have


class Done(NamedTuple):
    """What a request has done."""

    shared: Shared
    answer: Any  #: hashable; `Contents.value` gives what the process gets
    broken: str = ""  #: the promise that this write has broken; empty if none


class Contents:
    """All rows and objects that a search has met, by number."""

    def __init__(self) -> None:
        #: Replaces a statement, to check that the search notices one that is broken.
        self.mutate: Callable[[Statement], Statement] = lambda statement: statement
        self._rows: list[Row] = [{}]
        self._row_numbers: dict[str, int] = {}
        self._bodies: list[tuple[bytes, float]] = [(b"", 0.0)]
        self._body_numbers: dict[tuple[bytes, float], int] = {}
        #: The places of rows, by partition and sort key; and the sort keys of each partition.
        self._row_places: dict[tuple[str, str], int] = {}
        self._orders: defaultdict[str, list[str]] = defaultdict(list)
        self._object_places: dict[str, int] = {}
        self._object_order: list[str] = []

    # --- requests ---------------------------------------------------------------

    def make(self, shared: Shared, request: Request, now: float, alive: set[str]) -> Done:
        """Carry a request out at this time; `alive` are the names of live workers' elements."""
        if request.service == "table":
            return self._table(shared, request)
        if request.service == "store":
            return self._store(shared, request, now)
        return _SLURM[request.verb](shared, alive, *request.arguments)

    def value(self, request: Request, answer: Any) -> Any:
        """What the process gets for an answer; it may change it."""
        if request.service == "table":
            return self._row_value(request.verb, answer)
        if request.verb == "read" and answer is not None:
            body, modified = self._bodies[answer]
            return StoredObject(body, _tag(body), modified)
        if request.verb == "entries":
            return iter([ObjectInfo(*entry) for entry in answer])
        if request.verb == "list":
            return iter(answer)
        if request.service == "slurm":
            return _slurm_value(request.verb, answer)
        return answer

    def _row_value(self, verb: str, answer: Any) -> Any:
        if verb == "query":
            return iter([self.row(number) for number in answer])
        if verb == "get":
            return self.row(answer) if answer else None
        if verb == "delete":
            return None
        applied, number = answer
        if applied:
            return Applied(self.row(number))
        return Refused(self.row(number) if number else None)

    # --- the table --------------------------------------------------------------

    def row(self, number: int) -> Row:
        """A row that its reader may change."""
        found: Row = json.loads(json.dumps(self._rows[number]))
        return found

    def _table(self, shared: Shared, request: Request) -> Done:
        verb, arguments = request.verb, request.arguments
        if verb == "query":
            return Done(shared, self._query(shared, *arguments))
        if verb == "put_new":
            (row,) = arguments
            place = self._row_place(str(row["pk"]), str(row["sk"]))
        else:
            place = self._row_place(arguments[0], arguments[1])
        before = shared.rows[place] if place < len(shared.rows) else 0
        if verb == "get":
            return Done(shared, before)
        if verb == "delete":
            return Done(shared._replace(rows=_with(shared.rows, place, 0)), None)
        if before not in request.known:
            request.known[before] = self._write(before, request)
        applied, after, broken = request.known[before]
        if applied and after != before:
            shared = shared._replace(rows=_with(shared.rows, place, after))
        return Done(shared, (applied, after), broken)

    def _write(self, before: int, request: Request) -> tuple[bool, int, str]:
        """Whether a write of a row is applied, the row after it, and the rule that it breaks."""
        if request.verb == "put_new":
            (row,) = request.arguments
            return (False, before, "") if before else (True, self._row_number(row), "")
        pk, sk, statement = request.arguments
        table = MemoryRows()
        if before:
            table.put_new(self._rows[before])
        result = table.update(pk, sk, self.mutate(statement))
        if isinstance(result, Refused):
            return False, before, ""
        broken = broken_rule(
            statement_name(statement), self._rows[before], result.row, statement.values
        )
        return True, self._row_number(result.row), broken and f"{pk} {sk}: {broken}"

    def _query(
        self, shared: Shared, pk: str, after: str, limit: int | None, backwards: bool
    ) -> tuple[int, ...]:
        order = self._orders[pk]
        chosen = order[bisect_right(order, after) :]
        if backwards:
            chosen.reverse()
        places = (self._row_places[pk, sk] for sk in chosen)
        found = [
            shared.rows[place]
            for place in places
            if place < len(shared.rows) and shared.rows[place]
        ]
        return tuple(found[:limit])

    def _row_place(self, pk: str, sk: str) -> int:
        place = self._row_places.get((pk, sk))
        if place is None:
            place = self._row_places[pk, sk] = len(self._row_places)
            insort(self._orders[pk], sk)
        return place

    def _row_number(self, row: Row) -> int:
        text = json.dumps(row, sort_keys=True)
        number = self._row_numbers.setdefault(text, len(self._rows))
        if number == len(self._rows):
            self._rows.append(json.loads(text))
        return number

    # --- the store --------------------------------------------------------------

    def _store(self, shared: Shared, request: Request, now: float) -> Done:
        verb = request.verb
        if verb in ("list", "entries"):
            return Done(shared, tuple(self._listed(shared, request.arguments[0], verb)))
        if verb == "delete_many":
            objects = shared.objects
            for key in request.arguments[0]:
                objects = _with(objects, self._object_place(key), 0)
            return Done(shared._replace(objects=objects), None)
        key, *rest = request.arguments
        place = self._object_place(key)
        before = shared.objects[place] if place < len(shared.objects) else 0
        if verb == "get":
            start, length = rest
            body = self._bodies[before][0] if before else None
            return Done(shared, body and body[start : None if length is None else start + length])
        if verb == "read":
            return Done(shared, before or None)
        if verb == "size":
            return Done(shared, len(self._bodies[before][0]) if before else None)
        answer, after = self._stored(verb, before, rest, now)
        broken = ""
        if key.endswith(".done") and before and self._bodies[before][0] != self._bodies[after][0]:
            broken = f"{key} has had two contents"
        return Done(shared._replace(objects=_with(shared.objects, place, after)), answer, broken)

    def _stored(self, verb: str, before: int, rest: list[Any], now: float) -> tuple[Any, int]:
        """The answer to a write of an object, and the object after it."""
        if verb == "delete":
            return None, 0
        if verb == "put_new" and before:
            return False, before
        if verb == "put_if" and (not before or _tag(self._bodies[before][0]) != rest[1]):
            return False, before
        return (None if verb == "put" else True), self._body_number(rest[0], now)

    def _listed(self, shared: Shared, prefix: str, verb: str) -> Iterator[Any]:
        for key in self._object_order:
            place = self._object_places[key]
            number = shared.objects[place] if place < len(shared.objects) else 0
            if number and key.startswith(prefix):
                body, modified = self._bodies[number]
                yield key if verb == "list" else (key, len(body), modified)

    def _object_place(self, key: str) -> int:
        place = self._object_places.get(key)
        if place is None:
            place = self._object_places[key] = len(self._object_places)
            insort(self._object_order, key)
        return place

    def _body_number(self, body: bytes, now: float) -> int:
        entry = (body, EPOCH + now)
        number = self._body_numbers.setdefault(entry, len(self._bodies))
        if number == len(self._bodies):
            self._bodies.append(entry)
        return number

    # --- the truth ---------------------------------------------------------------

    def tables(self, shared: Shared) -> tuple[MemoryRows, MemoryObjects]:
        """The table and the store as the product's twins, for checks."""
        rows, objects = MemoryRows(), MemoryObjects()
        for number in shared.rows:
            if number:
                rows.put_new(self._rows[number])
        for key, place in self._object_places.items():
            if place < len(shared.objects) and (number := shared.objects[place]):
                objects.put(key, self._bodies[number][0])
        return rows, objects

    def put(self, shared: Shared, key: str, body: bytes, now: float) -> Shared:
        """With an object more, or another one in its place."""
        number = self._body_number(body, now)
        return shared._replace(objects=_with(shared.objects, self._object_place(key), number))

    def body(self, shared: Shared, key: str) -> bytes | None:
        """An object's bytes."""
        place = self._object_place(key)
        number = shared.objects[place] if place < len(shared.objects) else 0
        return self._bodies[number][0] if number else None

    def keys(self, shared: Shared, prefix: str) -> list[str]:
        """The keys of the objects under a prefix."""
        return list(self._listed(shared, prefix, "list"))


def _with(numbers: tuple[int, ...], place: int, number: int) -> tuple[int, ...]:
    """Another content at this place; equal states stay equal."""
    changed = [*numbers, *[0] * (place + 1 - len(numbers))]
    changed[place] = number
    while changed and not changed[-1]:
        changed.pop()
    return tuple(changed)


def _tag(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


# --- Slurm: each method of the client is one step --------------------------------------


def slurm_id(place: int) -> str:
    """The id of the array at this place."""
    return str(_FIRST_ID + place)


def _submit(shared: Shared, _alive: set[str], name: str, script: str) -> Done:
    if name in shared.withdrawn:
        return Done(shared, "")
    for place, array in enumerate(shared.arrays):
        if array.name == name:
            return Done(shared, slurm_id(place))
    arrays = (*shared.arrays, Array(name, script))
    return Done(shared._replace(arrays=arrays), slurm_id(len(arrays) - 1))


def _find(shared: Shared, _alive: set[str], names: tuple[str, ...]) -> Done:
    return Done(shared, _ids_of(shared, names))


def _ids_of(shared: Shared, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    places = enumerate(shared.arrays)
    return tuple((array.name, slurm_id(place)) for place, array in places if array.name in names)


def _withdraw(shared: Shared, _alive: set[str], names: tuple[str, ...]) -> Done:
    known = _ids_of(shared, names)
    gone = {*shared.withdrawn, *names} - {name for name, _ in known}
    return Done(shared._replace(withdrawn=tuple(sorted(gone))), known)


def _cancel(shared: Shared, alive: set[str], names: tuple[str, ...]) -> Done:
    ids = {name.partition("_")[0] for name in alive}
    found = tuple(
        (slurm_id(place), array.name)
        for place, array in enumerate(shared.arrays)
        if array.name in names and slurm_id(place) in ids
    )
    arrays = tuple(
        array._replace(cancelled=array.cancelled or array.name in names) for array in shared.arrays
    )
    return Done(shared._replace(arrays=arrays), found)


def _together(shared: Shared, alive: set[str], ids: tuple[str, ...]) -> Done:
    return Done(shared, tuple(sorted(name for name in alive if name.partition("_")[0] in ids)))


def _slurm_value(verb: str, answer: Any) -> Any:
    if verb == "submit" and not answer:
        return SubmissionCancelledError("cluster: the submission was cancelled")
    if verb in ("find", "withdraw"):
        return dict(answer)
    if verb == "together":
        running = {number: Element(ElementState.RUNNING) for number in range(len(answer))}
        return ArrayState("", running, alive=len(answer))
    return answer


_SLURM: dict[str, Callable[..., Done]] = {
    "submit": _submit,
    "find": _find,
    "withdraw": _withdraw,
    "cancel": _cancel,
    "together": _together,
}

"""Mutants of order: of two requests of a process, the first is made after the second.

The rules of order of the product (docs/architecture.md) say which request comes before which. A
mutant breaks one of them without a change to the product: the process gets an answer at once to the
first request, as if it had been made. It is made when the process has made the second. A process
that ends in between never makes it, as in a product that has the two steps exchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from greenlet import getcurrent

from slurm_worker.protocol.ports import Applied, Refused, Row, Statement
from slurm_worker.testing import MemoryRows
from tests.simulator.mutants.runs import Kind
from tests.simulator.slurm.login_node import SimTransport
from tests.simulator.stores.objects import SimObjects
from tests.simulator.stores.rows import SimRows, statement_name


@dataclass(frozen=True, slots=True)
class Order:
    """A rule of order, broken. Requests are patterns of the texts that `PutOff.ask` gets.

    Args:
        name: what the mutant does.
        first: the requests that come too late.
        second: what they come after.
        kinds: the runs in which such requests are made.
    """

    name: str
    first: str
    second: str
    kinds: tuple[Kind, ...] = (Kind.BACKFILL,)

    def __str__(self) -> str:
        return f"order: {self.name}"


_BOTH = (Kind.WORKERS, Kind.BACKFILL)
_PART = "put .*/parts/"
_MARKER = r"put .*/done/.*\.done"
_TASK_ROW = "put row .*#TASK#"
_HALF = r"put row .*#TASK#\S+ \d+#[24]\d{7}"
_META = "put row .* META"
_SBATCH = "cluster .*sbatch --parsable"

ORDERS = (
    Order("a row is done before its marker exists", _MARKER, "update complete", _BOTH),
    Order("a marker names parts before they exist", _PART, _MARKER, _BOTH),
    Order("a marker is published before the table decides", "update decide", _MARKER, _BOTH),
    Order("a whole is done before its halves have rows", _HALF, "update complete", _BOTH),
    Order(
        "a heartbeat names a checkpoint before it exists",
        "put .*/checkpoints/",
        "update (heartbeat|release)",
        _BOTH,
    ),
    Order("a job names a plan before its segments exist", "put .*/000/segment-", _META),
    Order("a job names a plan before its summary exists", "put .*/drafts/000/", _META),
    Order(
        "a job names a configuration before it exists",
        "put .*/config/",
        f"{_META}|update job config|{_SBATCH}",
    ),
    Order(
        "a retry names a plan before its segments exist",
        "put .*/00[1-9]/segment-",
        "update round adopt",
    ),
    Order("a round is open before its tasks have rows", _TASK_ROW, "update round open"),
    Order("a job is open before its round", "update round open", "update job open"),
    Order("tasks have rows only once the job is open", _TASK_ROW, "update job open"),
    Order("tasks are put back once their round is open", "update reopen", "update job open", _BOTH),
    Order("workers are submitted before their intent is written", "put row .* SUBMIT#", _SBATCH),
    Order("a manifest is written before its files", r"put .*\.parquet", "put .*/_manifest"),
    Order(
        "calls are made before they are charged",
        "update reserve",
        "update reserve",
        (Kind.LIMIT,),
    ),
)


class PutOff:
    """Puts the first requests of a rule off until after the second, for each simulated thread."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._waiting: dict[object, list[Callable[[], Any]]] = {}
        self.exchanged = 0  #: how often the order was another one

    def ask(self, text: str, make: Callable[[], Any], pretend: Callable[[], Any]) -> Any:
        """Make a request, or `pretend` that it was made.

        Args:
            text: the sort of request (``put`` is that of an object); and a statement's name, the
                key of a row or an object, or a command.
        """
        thread = getcurrent()
        first, second = re.match(self._order.first, text), re.match(self._order.second, text)
        late = self._waiting.pop(thread, []) if second else []
        if first:
            self._waiting.setdefault(thread, []).append(make)
            result = pretend()
        else:
            result = make()
        for request in late:
            self.exchanged += 1
            request()
        return result


@contextmanager
def broken(order: Order) -> Iterator[PutOff]:
    """Break the rule in all runs of this process."""
    put_off = PutOff(order)
    with ExitStack() as stack:
        for owner, name, replacement in _replacements(put_off):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield put_off


def _replacements(put_off: PutOff) -> Iterator[tuple[type, str, Callable[..., Any]]]:
    """The requests of all clients, each with what takes its place."""
    yield SimRows, "update", _update(put_off, SimRows.update)
    yield SimRows, "put_new", _put_row(put_off, SimRows.put_new)
    for name, answer in (("put", None), ("put_new", True), ("upload", None), ("put_if", True)):
        yield SimObjects, name, _put(put_off, getattr(SimObjects, name), answer)
    yield SimObjects, "copy", _copy(put_off, SimObjects.copy)
    yield SimTransport, "run", _command(put_off, SimTransport.run)


def _update(put_off: PutOff, make: Callable[..., Any]) -> Callable[..., Any]:
    def update(rows: SimRows, pk: str, sk: str, statement: Statement) -> Any:
        def pretend() -> Applied | Refused:
            table, row = MemoryRows(), rows.get(pk, sk)
            if row is not None:
                table.put_new(row)
            return table.update(pk, sk, statement)

        name = statement_name(statement)
        return put_off.ask(f"update {name}", lambda: make(rows, pk, sk, statement), pretend)

    return update


def _put_row(put_off: PutOff, make: Callable[..., Any]) -> Callable[..., Any]:
    def put_new(rows: SimRows, row: Row) -> Any:
        text = f"put row {row['pk']} {row['sk']}"
        return put_off.ask(text, lambda: make(rows, row), lambda: Applied(row))

    return put_new


def _put(put_off: PutOff, make: Callable[..., Any], answer: object) -> Callable[..., Any]:
    def put(objects: SimObjects, key: str, *content: Any) -> Any:
        return put_off.ask(f"put {key}", lambda: make(objects, key, *content), lambda: answer)

    return put


def _copy(put_off: PutOff, make: Callable[..., Any]) -> Callable[..., Any]:
    def copy(objects: SimObjects, source: str, key: str) -> Any:
        return put_off.ask(f"put {key}", lambda: make(objects, source, key), lambda: None)

    return copy


def _command(put_off: PutOff, make: Callable[..., Any]) -> Callable[..., Any]:
    def run(transport: SimTransport, command: str, *more: Any, **options: Any) -> Any:
        def execute() -> Any:
            return make(transport, command, *more, **options)

        return put_off.ask(f"cluster {command}", execute, execute)

    return run

"""Services that lose, repeat, delay and refuse requests in virtual time, and their records."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TypeVar, cast

from slurm_worker.errors import ServiceError, Throttled
from slurm_worker.protocol.keys import JOBS_PK
from slurm_worker.protocol.ports import (
    Applied,
    ObjectInfo,
    Refused,
    Row,
    Statement,
    StoredObject,
    int_of,
)
from slurm_worker.testing import MemoryObjects, MemoryRows
from tests.simulator.rules import broken_rule
from tests.simulator.schedule import Schedule
from tests.simulator.stores.recent import Recent

T = TypeVar("T")
_LATENCY_S = 0.008
_SLOW_S = 2.0
_TIMEOUT_S = 5.0
_TRIES = 4
#: The longest time that a read or a list may be behind.
_MOST_STALE_S = 30.0
#: The audit log's actions for what a worker does to a task of another.
RECORDED = {"steal": "lease_stolen", "quarantine": "quarantined"}


@dataclass(frozen=True, slots=True)
class FaultRates:
    """Chances per request, until `until` of simulated time.

    Args:
        lost_request: the request never arrives.
        lost_reply: the request is applied, but its reply is lost.
        throttled: the request is refused for now.
        slow: the request takes up to two seconds.
        stale_read_s: a read that is not consistent shows the rows of up to so many seconds ago.
        stale_list_s: a list shows the objects of up to so many seconds ago, also after `until`.
        conflict: a conditional PUT is refused for now while another one of its key is under way.
    """

    lost_request: float = 0.0
    lost_reply: float = 0.0
    throttled: float = 0.0
    slow: float = 0.0
    until: float = 0.0
    stale_read_s: float = 0.0
    stale_list_s: float = 0.0
    conflict: float = 0.0


@dataclass(frozen=True, slots=True)
class Outage:
    """A period of simulated time in which a service does not answer.

    Args:
        what: which requests are not answered: those with all of these words in the argument
            `where` of `Network.call`, such as ``table``, ``table write``, ``store put``, or
            ``table JOB#…`` for a partition; empty for all.
        fault: whether requests never arrive, or replies, or requests are throttled.
    """

    start: float
    end: float
    what: str
    fault: str

    def hits(self, now: float, where: str) -> bool:
        """Whether a request is not answered."""
        if not self.start <= now < self.end:
            return False
        return set(self.what.split()) <= set(where.split())


@dataclass
class Seen:
    """The requests that the services received, for the invariants."""

    requests: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    #: Distinct bodies ever stored under a marker's key.
    markers: dict[str, set[str]] = field(default_factory=dict)
    #: Attempts of each task, in the order in which they were granted.
    attempts: dict[str, list[int]] = field(default_factory=dict)
    #: When each marker was first stored.
    committed: dict[str, float] = field(default_factory=dict)
    #: Action, sort key and attempt of what happened to a task where its process, or the table,
    #: failed before it was in the audit log.
    unrecorded: set[tuple[str, str, int]] = field(default_factory=set)
    #: By partition, the rows that have changed a moment ago.
    rows: dict[str, Recent[Row]] = field(default_factory=dict)
    #: The same of objects.
    objects: Recent[ObjectInfo] = field(default_factory=lambda: Recent(_MOST_STALE_S))
    #: By key, the conditional PUTs that are under way.
    writing: Counter[str] = field(default_factory=Counter)

    def remember(self, rows: WatchedRows, schedule: Schedule) -> None:
        """Remember each write to a table for a moment, for reads that show the past."""

        def note(_name: str, before: Row, after: Row) -> None:
            recent = self.rows.setdefault(str(after["pk"]), Recent(_MOST_STALE_S))
            recent.note(schedule.now, str(after["sk"]), before or None)

        rows.watchers.append(note)


class WatchedRows(MemoryRows):
    """The table, with a record of what became of each statement and each row's state."""

    def __init__(self) -> None:
        super().__init__()
        #: Replaces a statement, to check that the simulator notices one that is broken.
        self.mutate: Callable[[Statement], Statement] = lambda statement: statement
        #: Called with each write that was applied: its name, the row before and after.
        self.watchers: list[Callable[[str, Row, Row], None]] = []
        #: Rules that a write has broken; see `rules`.
        self.broken: list[str] = []
        self.applied: Counter[str] = Counter()  #: by the statement's name
        self.refused: Counter[str] = Counter()
        #: By kind of row, state before and state after; only where they differ
        self.transitions: Counter[tuple[str, str, str]] = Counter()
        #: The states of task rows, by partition and sort key
        self.tasks: dict[tuple[str, str], str] = {}
        self._states: dict[tuple[str, str], str] = {}

    def put_new(self, row: Row) -> Applied | Refused:
        """See `ports.Rows.put_new`."""
        result = super().put_new(row)
        name = f"put {_kind_of(str(row['pk']), str(row['sk']))}"
        if isinstance(result, Applied):
            self._tell(name, {}, result.row)
        self._count_result(name, result)
        return result

    def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
        """See `ports.Rows.update`."""
        before = super().get(pk, sk) or {}
        result = super().update(pk, sk, self.mutate(statement))
        if isinstance(result, Applied):
            name = statement_name(statement)
            broken = broken_rule(name, before, result.row, statement.values)
            if broken:
                self.broken.append(f"{pk} {sk}: {broken}")
            self._tell(name, before, result.row)
        self._count_result(statement_name(statement), result)
        return result

    def delete(self, pk: str, sk: str) -> None:
        """See `ports.Rows.delete`."""
        super().delete(pk, sk)
        self.tasks.pop((pk, sk), None)
        self._states.pop((pk, sk), None)

    def _tell(self, name: str, before: Row, after: Row) -> None:
        for watcher in self.watchers:
            watcher(name, before, after)

    def _count_result(self, name: str, result: Applied | Refused) -> None:
        if isinstance(result, Refused):
            self.refused[name] += 1
            return
        self.applied[name] += 1
        row = result.row
        key = pk, sk = str(row["pk"]), str(row["sk"])
        kind, state = _kind_of(pk, sk), str(row.get("state", ""))
        before = self._states.get(key, "absent")
        if state and state != before:
            self._states[key] = state
            self.transitions[kind, before, state] += 1
            if kind == "task":
                self.tasks[key] = state


def statement_name(statement: Statement) -> str:
    """The statement's name; the stages of all shards are one."""
    return "stage" if re.fullmatch(r"s\d+", statement.name) else statement.name


def _kind_of(pk: str, sk: str) -> str:
    if "#TASK#" in pk:
        return "task"
    if "#EVENT#" in pk:
        return "event"
    if pk == JOBS_PK:
        return "list of jobs"
    return {"META": "job", "SLOT": "limit"}.get(sk.partition("#")[0], sk.partition("#")[0].lower())


class Conflict(Exception):
    """The store refuses a conditional PUT for now: another one of its key is under way."""


class Network:
    """The connection of a process to the services, with the SDK's retries and the faults.

    Args:
        schedule: the simulated time.
        rng: decides which faults happen.
        rates: how often they happen.
        seen: records the requests.
        outages: when services do not answer.
        answered: called with the name of each request after its answer.
        authorize: called before each request; raises an error if it would be refused.
    """

    def __init__(
        self,
        schedule: Schedule,
        rng: random.Random,
        rates: FaultRates,
        seen: Seen,
        outages: Sequence[Outage] = (),
        answered: Callable[[str], None] = lambda _name: None,
        authorize: Callable[[], None] = lambda: None,
    ) -> None:
        self._schedule = schedule
        self._rng = rng
        self._rates = rates
        self._seen = seen
        self._outages = outages
        self._answered = answered
        self._authorize = authorize

    @property
    def now(self) -> float:
        """The simulated time."""
        return self._schedule.now

    def call(self, name: str, apply: Callable[[], T], where: str) -> T:
        """Make a request as the SDK does: repeated until an answer comes, a few times.

        Raises:
            Throttled: if the last try was throttled.
            ServiceError: if no answer came, or the caller's credentials have expired.
        """
        fault = ""
        for attempt in range(_TRIES):
            self._authorize()
            self._schedule.sleep(self._rng.uniform(0.2, 1.8) * _LATENCY_S)
            fault = self._fault(where)
            if fault:
                self._seen.faults[fault] += 1
            self._seen.requests[name] += 1
            if fault == "slow":
                self._schedule.sleep(self._rng.uniform(0, _SLOW_S))
            if fault == "throttled":
                self._schedule.sleep(self._rng.uniform(0, 0.1 * 2**attempt))
                continue
            if fault != "lost_request":
                try:
                    result = apply()
                except Conflict:
                    self._schedule.sleep(self._rng.uniform(0, 0.1 * 2**attempt))
                    continue
            if fault in ("lost_request", "lost_reply"):
                self._schedule.sleep(_TIMEOUT_S)
                continue
            self._schedule.sleep(self._rng.uniform(0.2, 1.8) * _LATENCY_S)
            self._answered(name)
            return result
        if fault == "throttled":
            raise Throttled(f"{name}: throttled {_TRIES} times")
        raise ServiceError(f"{name}: no answer after {_TRIES} tries")

    def stale_from(self, most_s: float) -> float | None:
        """The past time that an answer shows; None if it shows the present."""
        if not most_s or self._rng.random() < 0.5:
            return None
        return self.now - self._rng.uniform(0, most_s)

    def stale_list_from(self) -> float | None:
        """As `stale_from`, for lists: the store is as it is until the end."""
        return self.stale_from(self._rates.stale_list_s)

    @property
    def rates(self) -> FaultRates:
        """How often faults happen now."""
        return self._rates if self.now <= self._rates.until else FaultRates()

    def chance(self, probability: float, fault: str) -> bool:
        """Whether a fault of this probability happens; it is counted."""
        happens = bool(probability) and self._rng.random() < probability
        self._seen.faults[fault] += happens
        return happens

    def fault_once(self, where: str) -> str:
        """Which fault a single try of a request meets; empty for none. It is recorded."""
        fault = self._fault(where)
        if fault:
            self._seen.faults[fault] += 1
        return fault

    def answer(self, name: str) -> None:
        """A request of this name was answered."""
        self._seen.requests[name] += 1
        self._answered(name)

    def _fault(self, where: str) -> str:
        for outage in self._outages:
            if outage.hits(self._schedule.now, where):
                return outage.fault
        if self._schedule.now > self._rates.until:
            return ""
        dice = self._rng.random()
        for name in ("lost_request", "lost_reply", "throttled", "slow"):
            dice -= getattr(self._rates, name)
            if dice < 0:
                return name
        return ""


class SimRows:
    """`ports.Rows` over a network."""

    def __init__(self, rows: MemoryRows, network: Network, seen: Seen) -> None:
        self._rows = rows
        self._network = network
        self._seen = seen

    def get(self, pk: str, sk: str, *, consistent: bool = True) -> Row | None:
        """See `ports.Rows.get`."""

        def apply() -> Row | None:
            past = {} if consistent else self._past(pk)
            if sk in past:
                self._seen.faults["stale read"] += 1
                return deepcopy(past[sk])
            return self._rows.get(pk, sk, consistent=consistent)

        return self._network.call("get", apply, f"table read {pk}")

    def put_new(self, row: Row) -> Applied | Refused:
        """See `ports.Rows.put_new`."""
        try:
            return self._network.call(
                "put", lambda: self._rows.put_new(row), f"table write {row['pk']}"
            )
        except BaseException:
            if row.get("action") in RECORDED.values():
                detail = cast("Row", row["detail"])
                sk = str(detail["task"]).replace("-", "#")
                self._seen.unrecorded.add((str(row["action"]), sk, int_of(detail, "attempt")))
            raise

    def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
        """See `ports.Rows.update`."""
        taken: set[tuple[str, str, int]] = set()

        def apply() -> Applied | Refused:
            result = self._rows.update(pk, sk, statement)
            if isinstance(result, Applied) and statement.name in RECORDED:
                attempt = int_of(result.row, "attempt") - (statement.name == "steal")
                taken.add((RECORDED[statement.name], sk, attempt))
            if isinstance(result, Applied) and statement.name in ("claim", "steal"):
                attempt = int_of(result.row, "attempt")
                self._seen.attempts.setdefault(sk, []).append(attempt)
            if isinstance(result, Refused) and statement.name == "claim":
                self._seen.requests["claim refused"] += 1
            return result

        try:
            result = self._network.call(statement.name, apply, f"table write {pk}")
        except BaseException:
            self._seen.unrecorded |= taken
            raise
        if isinstance(result, Refused) and not _is_of(statement, result.row or {}):
            # Its first reply was lost, and the row has moved on: nobody can tell.
            self._seen.unrecorded |= taken
        return result

    def query(
        self,
        pk: str,
        *,
        after: str = "",
        limit: int | None = None,
        consistent: bool = False,
        backwards: bool = False,
    ) -> Iterator[Row]:
        """See `ports.Rows.query`."""

        def apply() -> list[Row]:
            # Again at each try: the reply of the previous one may have been lost.
            past = {} if consistent else self._past(pk)
            if past:
                self._seen.faults["stale read"] += 1
                rows = {str(row["sk"]): row for row in self._rows.query(pk)} | deepcopy(past)
                found = sorted(
                    (sk, row) for sk, row in rows.items() if row is not None and sk > after
                )
                return [row for _, row in (found[::-1] if backwards else found)][:limit]
            return list(
                self._rows.query(
                    pk, after=after, limit=limit, consistent=consistent, backwards=backwards
                )
            )

        yield from self._network.call("query", apply, f"table read {pk}")

    def _past(self, pk: str) -> dict[str, Row | None]:
        """What a read that is not consistent shows of the rows that have changed."""
        when = self._network.stale_from(self._network.rates.stale_read_s)
        recent = self._seen.rows.get(pk)
        return {} if when is None or recent is None else recent.since(when)

    def delete(self, pk: str, sk: str) -> None:
        """See `ports.Rows.delete`."""
        self._network.call("delete", lambda: self._rows.delete(pk, sk), f"table write {pk}")


def _is_of(statement: Statement, row: Row) -> bool:
    return statement.name == "steal" and row.get("request") == statement.values["request"]


class SimObjects:
    """`ports.ObjectStore` over a network.

    Args:
        store: the objects.
        network: the connection to them.
        seen: records the markers.
        conditional_put: whether the store heeds ``If-None-Match``.
        conditional_replace: whether it heeds ``If-Match``.
    """

    def __init__(
        self,
        store: MemoryObjects,
        network: Network,
        seen: Seen,
        *,
        conditional_put: bool = True,
        conditional_replace: bool = True,
    ) -> None:
        self._store = store
        self._conditional_replace = conditional_replace
        self._network = network
        self._seen = seen
        self._conditional_put = conditional_put

    def verify(self) -> None:
        """See `ports.ObjectStore.verify`."""
        self._call("head", self._store.verify)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        """See `ports.ObjectStore.get`."""
        return self._call("get", lambda: self._store.get(key, start=start, length=length))

    def put(self, key: str, body: bytes) -> None:
        """See `ports.ObjectStore.put`."""

        def apply() -> None:
            self._store.put(key, body)
            self._record(key, body)

        self._change("put", [key], apply)

    def put_new(self, key: str, body: bytes) -> bool:
        """See `ports.ObjectStore.put_new`."""
        if not self._conditional_put:
            # Such a store ignores the header.
            self.put(key, body)
            return True

        def apply() -> bool:
            created = self._store.put_new(key, body)
            if created:
                self._record(key, body)
            return created

        return self._put_where(key, apply)

    def read(self, key: str) -> StoredObject | None:
        """See `ports.ObjectStore.read`."""
        return self._call("get", lambda: self._store.read(key))

    def put_if(self, key: str, body: bytes, tag: str) -> bool:
        """See `ports.ObjectStore.put_if`."""
        if not self._conditional_replace:
            self.put(key, body)
            return True
        return self._put_where(key, lambda: self._store.put_if(key, body, tag))

    def list(self, prefix: str) -> Iterator[str]:
        """See `ports.ObjectStore.list`."""
        yield from self._call("list", lambda: [entry.key for entry in self._listed(prefix)])

    def entries(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ports.ObjectStore.entries`."""
        yield from self._call("list", lambda: self._listed(prefix))

    def delete(self, key: str) -> None:
        """See `ports.ObjectStore.delete`."""
        self._change("delete", [key], lambda: self._store.delete(key))

    def delete_many(self, keys: Iterable[str]) -> None:
        """See `ports.ObjectStore.delete_many`."""
        chosen = list(keys)
        self._change("delete", chosen, lambda: self._store.delete_many(chosen))

    def size(self, key: str) -> int | None:
        """See `ports.ObjectStore.size`."""
        return self._call("head", lambda: self._store.size(key))

    def upload(self, key: str, path: str) -> None:
        """See `ports.ObjectStore.upload`."""
        self._change("put", [key], lambda: self._store.upload(key, path))

    def download(self, key: str, path: str) -> None:
        """See `ports.ObjectStore.download`."""
        self._call("get", lambda: self._store.download(key, path))

    def copy(self, source: str, key: str) -> None:
        """See `ports.ObjectStore.copy`."""
        self._change("put", [key], lambda: self._store.copy(source, key))

    def _put_where(self, key: str, apply: Callable[[], bool]) -> bool:
        """A PUT with a condition; it may collide with another one of its key."""

        def unless_conflict() -> bool:
            several = self._seen.writing[key] > 1
            if several and self._network.chance(self._network.rates.conflict, "conflict"):
                raise Conflict
            return apply()

        self._seen.writing[key] += 1
        try:
            return self._change("put", [key], unless_conflict)
        finally:
            self._seen.writing[key] -= 1

    def _listed(self, prefix: str) -> Sequence[ObjectInfo]:
        when = self._network.stale_list_from()
        current = [*self._store.entries(prefix)]
        if when is None:
            return current
        past = self._seen.objects.past(when, ((entry.key, entry) for entry in current), prefix)
        found = [*past.values()]
        self._seen.faults["stale list"] += found != current
        return found

    def _change(self, verb: str, keys: Sequence[str], apply: Callable[[], T]) -> T:
        def noted() -> T:
            before = {key: self._info(key) for key in keys}
            result = apply()
            for key, info in before.items():
                self._seen.objects.note(self._network.now, key, info)
            return result

        return self._call(verb, noted)

    def _info(self, key: str) -> ObjectInfo | None:
        body = self._store.objects.get(key)
        return (
            None if body is None else ObjectInfo(key, len(body), self._store.modified.get(key, 0.0))
        )

    def _call(self, verb: str, apply: Callable[[], T]) -> T:
        return self._network.call(f"object {verb}", apply, f"store {verb}")

    def _record(self, key: str, body: bytes) -> None:
        if key.endswith(".done"):
            self._seen.committed.setdefault(key, self._network.now)
            digest = hashlib.sha256(body).hexdigest()
            self._seen.markers.setdefault(key, set()).add(digest)

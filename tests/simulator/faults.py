"""Services that lose, repeat, delay and refuse requests in virtual time, and their records."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
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
from tests.simulator.schedule import Host, Schedule
from tests.simulator.seen import Seen
from tests.simulator.stores.recent import Recent

T = TypeVar("T")
V = TypeVar("V")
_LATENCY_S = 0.008
_SLOW_S = 2.0
_TIMEOUT_S = 5.0
_TRIES = 4
#: Mean delay of a write that arrives late.
_LATE_S = 20.0
_MANIFEST = "/dataset/_manifest.json"
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
        late: a write arrives when its sender has given up waiting, and has perhaps repeated it.
        stale_read_s: a read that is not consistent shows the rows of up to so many seconds ago.
        stale_list_s: a list shows the objects of up to so many seconds ago, also after `until`.
        conflict: a conditional PUT is refused for now while another one of its key is under way.
    """

    lost_request: float = 0.0
    lost_reply: float = 0.0
    throttled: float = 0.0
    slow: float = 0.0
    late: float = 0.0
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
    host: str = ""  #: the only process that is cut off; empty for all

    def hits(self, now: float, where: str, host: str = "") -> bool:
        """Whether a request of a process is not answered."""
        if not self.start <= now < self.end or self.host not in ("", host):
            return False
        return set(self.what.split()) <= set(where.split())


@dataclass(frozen=True, slots=True)
class Aim:
    """An outage that begins with the next request of a name.

    Args:
        name: of the request, such as a statement's.
        length_s: of the outage.
        alone: whether only the process that makes the request is cut off.
    """

    name: str
    length_s: float
    what: str
    fault: str
    alone: bool


class Outages(list[Outage]):
    """The outages of a run, and those that wait for a request."""

    def __init__(self, outages: Iterable[Outage] = ()) -> None:
        super().__init__(outages)
        self.aims: list[Aim] = []


class WatchedRows(MemoryRows):
    """The table, with a record of what became of each statement and each row's state."""

    def __init__(self) -> None:
        super().__init__()
        #: Replaces a statement, to check that the simulator notices one that is broken.
        self.mutate: Callable[[Statement], Statement] = lambda statement: statement
        #: Called with each write that was applied: its name, the row before and after.
        self.watchers: list[Callable[[str, Row, Row], None]] = []
        #: Called with each update that was refused, and the row that it met; for mutants.
        self.on_refusal: Callable[[str, str, Statement, Row | None], None] = _nothing
        #: Rules that a write has broken; see `rules`.
        self.broken: list[str] = []
        #: Called with each of them.
        self.on_broken: Callable[[str], None] = lambda _rule: None
        #: Called with the key of each row that is deleted.
        self.on_delete: Callable[[str, str], None] = lambda _pk, _sk: None
        #: Gets a line when a write breaks a rule.
        self.say: Callable[[str], None] = lambda _line: None
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
                self.say(f"A RULE IS BROKEN: {broken}")
                self.on_broken(self.broken[-1])
            self._tell(name, before, result.row)
        else:
            self.on_refusal(pk, sk, statement, result.row)
        self._count_result(statement_name(statement), result)
        return result

    def delete(self, pk: str, sk: str) -> None:
        """See `ports.Rows.delete`."""
        super().delete(pk, sk)
        self.on_delete(pk, sk)
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
        if kind == "submit" and row.get("refused"):
            state = "refused"
        before = self._states.get(key, "absent")
        if state and state != before:
            self._states[key] = state
            self.transitions[kind, before, state] += 1
            if kind == "task":
                self.tasks[key] = state


def _nothing(_pk: str, _sk: str, _statement: Statement, _row: Row | None) -> None:
    """Ignore the refusal."""


def _short(pk: str) -> str:
    """A partition key without the job's name."""
    kind, _, rest = pk.partition("#")
    return rest.partition("#")[2] or "job" if kind == "JOB" else pk


class WatchedObjects(MemoryObjects):
    """The bucket; each write and each deletion is reported."""

    def __init__(self) -> None:
        super().__init__()
        #: Called with the key and the body of each object that was written.
        self.on_put: Callable[[str, bytes], None] = lambda _key, _body: None
        #: Called with the key of each object that was deleted.
        self.on_delete: Callable[[str], None] = lambda _key: None

    def put(self, key: str, body: bytes) -> None:
        """See `ports.ObjectStore.put`."""
        super().put(key, body)
        self.on_put(key, body)

    def put_new(self, key: str, body: bytes) -> bool:
        """See `ports.ObjectStore.put_new`."""
        created = super().put_new(key, body)
        if created:
            self.on_put(key, body)
        return created

    def put_if(self, key: str, body: bytes, tag: str) -> bool:
        """See `ports.ObjectStore.put_if`."""
        replaced = super().put_if(key, body, tag)
        if replaced:
            self.on_put(key, body)
        return replaced

    def delete(self, key: str) -> None:
        """See `ports.ObjectStore.delete`."""
        super().delete(key)
        self.on_delete(key)


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
        before_put: called with the key of each conditional PUT before it is sent.
    """

    def __init__(
        self,
        schedule: Schedule,
        rng: random.Random,
        rates: FaultRates,
        seen: Seen,
        outages: Outages | None = None,
        answered: Callable[[str], None] = lambda _name: None,
        authorize: Callable[[], None] = lambda: None,
        before_put: Callable[[str], None] = lambda _key: None,
    ) -> None:
        self._schedule = schedule
        self._rng = rng
        self._rates = rates
        self._seen = seen
        self._outages = Outages() if outages is None else outages
        self._answered = answered
        self._authorize = authorize
        self.before_put = before_put
        # One draw for each request: which of them meet faults does not depend on other draws.
        self._dice = random.Random(rng.random())
        self._requests = 0

    @property
    def host(self) -> str:
        """The process that makes the requests."""
        return self._schedule.current.host.name

    @property
    def now(self) -> float:
        """The simulated time."""
        return self._schedule.now

    def call(
        self,
        name: str,
        apply: Callable[[], T],
        where: str,
        late: Callable[[], object] | None = None,
    ) -> T:
        """Make a request as the SDK does: repeated until an answer comes, a few times.

        `late` makes it where it arrives late; None where it is then lost.

        Raises:
            Throttled: if the last try was throttled.
            ServiceError: if no answer came, or the caller's credentials have expired.
        """
        fault = ""
        self._begin_outages(name)
        for attempt in range(_TRIES):
            self._authorize()
            self._schedule.sleep(self._rng.uniform(0.2, 1.8) * _LATENCY_S)
            fault = self._fault(where)
            self._seen.requests[name] += 1
            if fault == "slow":
                self._schedule.sleep(self._rng.uniform(0, _SLOW_S))
            if fault == "throttled":
                self._schedule.sleep(self._rng.uniform(0, 0.1 * 2**attempt))
                continue
            if fault == "late" and late is not None:
                self._arrive_later(late)
            if fault not in ("lost_request", "late"):
                try:
                    result = apply()
                except Conflict:
                    self._schedule.sleep(self._rng.uniform(0, 0.1 * 2**attempt))
                    continue
            if fault in ("lost_request", "lost_reply", "late"):
                self._schedule.sleep(_TIMEOUT_S)
                continue
            self._schedule.sleep(self._rng.uniform(0.2, 1.8) * _LATENCY_S)
            self._answered(name)
            return result
        if fault == "throttled":
            raise Throttled(f"{name}: throttled {_TRIES} times")
        raise ServiceError(f"{name}: no answer after {_TRIES} tries")

    def _begin_outages(self, name: str) -> None:
        if self.now > self._rates.until:
            return
        for aim in [aim for aim in self._outages.aims if aim.name == name]:
            self._outages.aims.remove(aim)
            end, host = self.now + aim.length_s, self.host if aim.alone else ""
            outage = Outage(self.now, end, aim.what, aim.fault, host)
            self._outages.append(outage)
            self._seen.say(f"{outage}")

    def _arrive_later(self, late: Callable[[], object]) -> None:
        """Make a request later, whatever has become of its sender."""
        delay_s = _TIMEOUT_S + self._rng.expovariate(1 / _LATE_S)

        def arrive() -> None:
            self._schedule.sleep(delay_s)
            late()

        self._schedule.spawn(Host("network"), arrive)

    def past(
        self, recent: Recent[V], most_s: float, kind: str, prefix: str = ""
    ) -> dict[str, V | None]:
        """What an answer shows of the keys that have changed: their values of a time ago."""
        if not most_s or self._rng.random() < 0.5:
            return {}
        found = recent.since(self.now - self._rng.uniform(0, most_s), prefix)
        return found if found and self.happens(kind) else {}

    @property
    def rates(self) -> FaultRates:
        """How often faults happen now."""
        return self._rates if self.now <= self._rates.until else FaultRates()

    @property
    def stale_list_s(self) -> float:
        """By how much lists may be late; the store is so until the end."""
        return self._rates.stale_list_s

    def chance(self, probability: float, kind: str) -> bool:
        """Whether something of this probability goes wrong with the request."""
        return bool(probability) and self._rng.random() < probability and self.happens(kind)

    def happens(self, kind: str) -> bool:
        """Whether this may go wrong with the request; it is counted."""
        return self._seen.happens(f"{self.host} request {self._requests}", kind)

    def fault_once(self, where: str) -> str:
        """Which fault a single try of a request meets; empty for none. It is recorded."""
        fault = self._fault(where)
        return "lost_request" if fault == "late" else fault

    def answer(self, name: str) -> None:
        """A request of this name was answered."""
        self._seen.requests[name] += 1
        self._answered(name)

    def _fault(self, where: str) -> str:
        dice = self._dice.random()
        self._requests += 1
        for outage in self._outages:
            if outage.hits(self._schedule.now, where, self.host):
                self._seen.faults[outage.fault] += 1
                return outage.fault
        if self._schedule.now > self._rates.until:
            return ""
        for name in ("lost_request", "lost_reply", "throttled", "slow", "late"):
            dice -= getattr(self._rates, name)
            if dice < 0:
                happens = self._seen.happens(f"{self.host} request {self._requests}", name)
                return name if happens else ""
        return ""


def remember(rows: WatchedRows, seen: Seen, schedule: Schedule) -> None:
    """Remember each write to a table for a moment, for reads that show the past."""

    def note(_name: str, before: Row, after: Row) -> None:
        recent = seen.rows.setdefault(str(after["pk"]), Recent())
        recent.note(schedule.now, str(after["sk"]), before or None)

    rows.watchers.append(note)


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
                return deepcopy(past[sk])
            return self._rows.get(pk, sk, consistent=consistent)

        return self._network.call("get", apply, f"table read {pk}")

    def put_new(self, row: Row) -> Applied | Refused:
        """See `ports.Rows.put_new`."""

        def apply() -> Applied | Refused:
            result = self._rows.put_new(row)
            self._say(f"put {_short(str(row['pk']))} {row['sk']}", result)
            return result

        try:
            return self._network.call("put", apply, f"table write {row['pk']}", apply)
        except BaseException:
            # `Killed` as well: a process that dies here writes no audit event.
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
            self._say(f"{statement.name} {_short(pk)} {sk}", result)
            if isinstance(result, Applied) and statement.name in RECORDED:
                attempt = int_of(result.row, "attempt") - (statement.name == "steal")
                taken.add((RECORDED[statement.name], sk, attempt))
            if isinstance(result, Applied) and statement.name in ("claim", "steal"):
                attempt = int_of(result.row, "attempt")
                self._seen.attempts.setdefault(sk, []).append(attempt)
            if isinstance(result, Refused) and statement.name == "claim":
                self._seen.requests["claim refused"] += 1
            return result

        def apply_late() -> None:
            apply()
            # Nobody gets this answer.
            self._seen.unrecorded |= taken

        try:
            result = self._network.call(statement.name, apply, f"table write {pk}", apply_late)
        except BaseException:
            # `Killed` as well: a process that dies here writes no audit event.
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
            if not past:
                found = self._rows.query(
                    pk, after=after, limit=limit, consistent=consistent, backwards=backwards
                )
                return list(found)
            rows = {str(row["sk"]): row for row in self._rows.query(pk)} | deepcopy(past)
            old = sorted((sk, row) for sk, row in rows.items() if row is not None and sk > after)
            return [row for _, row in (old[::-1] if backwards else old)][:limit]

        yield from self._network.call("query", apply, f"table read {pk}")

    def _past(self, pk: str) -> dict[str, Row | None]:
        recent = self._seen.rows.get(pk)
        if recent is None:
            return {}
        return self._network.past(recent, self._network.rates.stale_read_s, "stale read")

    def delete(self, pk: str, sk: str) -> None:
        """See `ports.Rows.delete`."""
        self._network.call("delete", lambda: self._rows.delete(pk, sk), f"table write {pk}")
        self._seen.write(self._network.host, f"delete {_short(pk)} {sk}")

    def _say(self, write: str, result: Applied | Refused) -> None:
        refused = " refused" if isinstance(result, Refused) else ""
        self._seen.write(self._network.host, f"{write}{refused}")


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

        def apply() -> bool:
            replaced = self._store.put_if(key, body, tag)
            if replaced:
                self._record(key, body)
            return replaced

        return self._put_where(key, apply)

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

        self._network.before_put(key)
        self._seen.writing[key] += 1
        try:
            return self._change("put", [key], unless_conflict, late=apply)
        finally:
            self._seen.writing[key] -= 1

    def _listed(self, prefix: str) -> Sequence[ObjectInfo]:
        past = self._network.past(
            self._seen.objects, self._network.stale_list_s, "stale list", prefix
        )
        current = self._store.entries(prefix)
        if not past:
            return [*current]
        found = {entry.key: entry for entry in current} | past
        return [entry for _, entry in sorted(found.items()) if entry is not None]

    def _change(
        self,
        verb: str,
        keys: Sequence[str],
        apply: Callable[[], T],
        late: Callable[[], object] | None = None,
    ) -> T:
        def noted(change: Callable[[], V]) -> V:
            before = {key: self._info(key) for key in keys}
            result = change()
            for key, info in before.items():
                self._seen.objects.note(self._network.now, key, info)
            return result

        name, where = f"object {verb}", f"store {verb}"
        return self._network.call(name, lambda: noted(apply), where, lambda: noted(late or apply))

    def _info(self, key: str) -> ObjectInfo | None:
        body = self._store.objects.get(key)
        return (
            None if body is None else ObjectInfo(key, len(body), self._store.modified.get(key, 0.0))
        )

    def _call(self, verb: str, apply: Callable[[], T]) -> T:
        return self._network.call(f"object {verb}", apply, f"store {verb}")

    def _record(self, key: str, body: bytes) -> None:
        self._seen.write(self._network.host, f"put {key}")
        if key.endswith(_MANIFEST):
            self._seen.manifest(body)
        if key.endswith(".done"):
            self._seen.committed.setdefault(key, self._network.now)
            digest = hashlib.sha256(body).hexdigest()
            self._seen.markers.setdefault(key, set()).add(digest)

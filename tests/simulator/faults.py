"""Services that lose, repeat, delay and refuse requests in virtual time, and their records."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from slurm_worker.errors import ServiceError
from slurm_worker.protocol.ports import Applied, Refused, Row, Statement
from slurm_worker.testing import MemoryObjects, MemoryRows
from tests.simulator.schedule import Schedule

T = TypeVar("T")
_LATENCY_S = 0.008
_SLOW_S = 2.0
_TIMEOUT_S = 5.0
_TRIES = 4


@dataclass(frozen=True, slots=True)
class FaultRates:
    """Chances per request, until `until` of simulated time.

    Args:
        lost_request: the request never arrives.
        lost_reply: the request is applied, but its reply is lost.
        throttled: the request is refused for now.
        slow: the request takes up to two seconds.
    """

    lost_request: float = 0.0
    lost_reply: float = 0.0
    throttled: float = 0.0
    slow: float = 0.0
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class Outage:
    """A period of simulated time in which a service does not answer.

    Args:
        what: which requests are not answered, by the first words of the argument of
            `Network.call`: ``table``, ``table JOB#…`` for a partition, ``store``,
            ``store put``; empty for all.
        fault: whether requests never arrive, or replies.
    """

    start: float
    end: float
    what: str
    fault: str

    def hits(self, now: float, where: str) -> bool:
        """Whether a request is not answered."""
        named = not self.what or f"{where} ".startswith(f"{self.what} ")
        return self.start <= now < self.end and named


@dataclass
class Seen:
    """The requests that the services received, for the invariants."""

    requests: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    #: Distinct bodies ever stored under a marker's key.
    markers: dict[str, set[str]] = field(default_factory=dict)
    #: Attempts of each task, in the order in which they were granted.
    attempts: dict[str, list[int]] = field(default_factory=dict)


class Network:
    """The connection of a process to the services, with the SDK's retries and the faults.

    Args:
        schedule: the simulated time.
        rng: decides which faults happen.
        rates: how often they happen.
        seen: records the requests.
        outages: when services do not answer.
        answered: called with the name of each request after its answer.
    """

    def __init__(
        self,
        schedule: Schedule,
        rng: random.Random,
        rates: FaultRates,
        seen: Seen,
        outages: Sequence[Outage] = (),
        answered: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._schedule = schedule
        self._rng = rng
        self._rates = rates
        self._seen = seen
        self._outages = outages
        self._answered = answered

    def call(self, name: str, apply: Callable[[], T], where: str) -> T:
        """Make a request as the SDK does: repeated until an answer comes, a few times."""
        for attempt in range(_TRIES):
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
                result = apply()
            if fault in ("lost_request", "lost_reply"):
                self._schedule.sleep(_TIMEOUT_S)
                continue
            self._schedule.sleep(self._rng.uniform(0.2, 1.8) * _LATENCY_S)
            self._answered(name)
            return result
        raise ServiceError(f"{name}: no answer after {_TRIES} tries")

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
        return self._network.call(
            "get", lambda: self._rows.get(pk, sk, consistent=consistent), f"table {pk}"
        )

    def put_new(self, row: Row) -> Applied | Refused:
        """See `ports.Rows.put_new`."""
        return self._network.call("put", lambda: self._rows.put_new(row), f"table {row['pk']}")

    def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
        """See `ports.Rows.update`."""

        def apply() -> Applied | Refused:
            result = self._rows.update(pk, sk, statement)
            if isinstance(result, Applied) and statement.name in ("claim", "steal"):
                attempt = result.row["attempt"]
                assert isinstance(attempt, int)
                self._seen.attempts.setdefault(sk, []).append(attempt)
            if isinstance(result, Refused) and statement.name == "claim":
                self._seen.requests["claim refused"] += 1
            return result

        return self._network.call(statement.name, apply, f"table {pk}")

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
            return list(
                self._rows.query(
                    pk, after=after, limit=limit, consistent=consistent, backwards=backwards
                )
            )

        yield from self._network.call("query", apply, f"table {pk}")

    def delete(self, pk: str, sk: str) -> None:
        """See `ports.Rows.delete`."""
        self._network.call("delete", lambda: self._rows.delete(pk, sk), f"table {pk}")


class SimObjects(MemoryObjects):
    """`ports.ObjectStore` over a network; shares the objects of `store`."""

    def __init__(self, store: MemoryObjects, network: Network, seen: Seen) -> None:
        super().__init__()
        self._store = store
        self.objects = store.objects
        self._network = network
        self._seen = seen

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        """See `ports.ObjectStore.get`."""
        return self._network.call(
            "object get", lambda: self._store.get(key, start=start, length=length), "store get"
        )

    def put(self, key: str, body: bytes) -> None:
        """See `ports.ObjectStore.put`."""

        def apply() -> None:
            self._store.put(key, body)
            self._note(key, body)

        self._network.call("object put", apply, "store put")

    def put_new(self, key: str, body: bytes) -> bool:
        """See `ports.ObjectStore.put_new`."""

        def apply() -> bool:
            created = self._store.put_new(key, body)
            if created:
                self._note(key, body)
            return created

        return self._network.call("object put", apply, "store put")

    def _note(self, key: str, body: bytes) -> None:
        if key.endswith(".done"):
            digest = hashlib.sha256(body).hexdigest()
            self._seen.markers.setdefault(key, set()).add(digest)

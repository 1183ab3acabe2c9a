"""A process's connection to the services: the SDK's retries, and what is lost, late or refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from slurm_worker.errors import ServiceError, Throttled
from tests.simulator.engine.schedule import Host, Schedule
from tests.simulator.engine.seen import Seen
from tests.simulator.stores.outages import FaultRates, Outage, Outages
from tests.simulator.stores.recent import Recent

T = TypeVar("T")
V = TypeVar("V")
_LATENCY_S = 0.008
_SLOW_S = 2.0
_TIMEOUT_S = 5.0
_TRIES = 4
#: Mean delay of a write that arrives late.
_LATE_S = 20.0


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

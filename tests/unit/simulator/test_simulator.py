"""The simulator finds nothing in the protocol, and finds what is broken on purpose."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from slurm_worker.protocol.job_config import LimitConfig
from slurm_worker.protocol.keys import TaskId
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.ports import ObjectStore
from slurm_worker.rate_limits.limiter import RateLimiter, Token
from tests.simulator.checks.rows import Violation
from tests.simulator.limits import LimitSimulation, Make
from tests.simulator.run import Mutation, Simulation
from tests.simulator.stores.objects import SimObjects

SEEDS = 150
#: Within so many seeds a broken protocol must be found out.
MOST = 1000


def test_no_seed_breaks_a_promise() -> None:
    lost = faults = 0
    for seed in range(SEEDS):
        report = Simulation(seed).run()
        lost += report.lost_leases
        faults += report.faults.total()
    assert lost > SEEDS, "leases must have been lost for this to mean anything"
    assert faults > 10 * SEEDS


def test_a_seed_is_the_same_run_each_time() -> None:
    first, second = Simulation(7).run(), Simulation(7).run()
    assert first == second


class Overwrites(SimObjects):
    """A store, or a worker, that does not heed ``If-None-Match``."""

    def __init__(self, objects: SimObjects) -> None:
        self.__dict__ = objects.__dict__

    def put_new(self, key: str, body: bytes) -> bool:
        self.put(key, body)
        return True


class FixedNames(JobPaths):
    """Parts named after their task alone."""

    def part(self, task: TaskId, attempt: int, unique: str, suffix: str) -> str:
        return f"{self.parts}{task}.{suffix}"


def overwrites(objects: ObjectStore) -> ObjectStore:
    assert isinstance(objects, SimObjects)
    return Overwrites(objects)


def never_late(limit: LimitConfig) -> LimitConfig:
    return replace(limit, send_window_s=1e9)


MUTATIONS = {
    "unconditional marker": (
        Mutation(objects=overwrites),
        "different contents|not what was committed|different winners|once too often",
    ),
    "fixed part keys": (
        Mutation(paths=lambda paths: FixedNames(paths.prefix, paths.job)),
        "not what was committed",
    ),
    "no deadline check on tokens": (Mutation(limit=never_late), "requests within"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_protocol_is_found_out(name: str) -> None:
    mutation, expected = MUTATIONS[name]
    found = next(filter(None, (violation(seed, mutation) for seed in range(MOST))), "nothing")
    assert re.search(expected, found)


def violation(seed: int, mutation: Mutation) -> str:
    try:
        Simulation(seed, mutation).run()
    except Violation as found:
        return f"seed {seed}: {found}"
    return ""


class SendsLate(RateLimiter):
    """Uses tokens whenever they come."""

    def usable(self, token: Token) -> bool:
        return token.until > 0

    def _token(self, slot: float) -> Token:
        return replace(super()._token(slot), until=1e12)


class GivesBackAgain(RateLimiter):
    """Does not know whether its write was applied, and repeats it all the same."""

    def close(self) -> None:
        day, held = self._allotment.day, self._allotment.held
        for _ in range(5):
            self._allotment.charged(day, held)
            super().close()


BROKEN_LIMITERS: dict[str, tuple[Make, str]] = {
    "tokens are used late": (SendsLate, "calls within|with a quota of"),
    "quota is given back again": (GivesBackAgain, "with a quota of|are counted"),
}


@pytest.mark.parametrize("name", BROKEN_LIMITERS)
def test_a_broken_limiter_is_found_out(name: str) -> None:
    make, expected = BROKEN_LIMITERS[name]
    found = next(filter(None, (limit_violation(seed, make) for seed in range(MOST))), "nothing")
    assert re.search(expected, found)


def test_no_seed_breaks_a_promise_of_a_rate_limit() -> None:
    reports = [LimitSimulation(seed).run() for seed in range(SEEDS // 2)]
    assert sum(each.calls for each in reports) > 100 * len(reports)
    assert sum(each.faults.total() for each in reports) > 10 * len(reports)


def limit_violation(seed: int, make: Make) -> str:
    try:
        LimitSimulation(seed, make).run()
    except Violation as found:
        return f"seed {seed}: {found}"
    return ""

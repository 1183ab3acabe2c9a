"""A failing run is reduced to what matters, and told from its first event to the broken promise."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from tests.simulator.engine.reduction import Reduction
from tests.simulator.engine.shrink import Failure, Make, failure_of, shrink, time_line
from tests.simulator.run import Simulation
from tests.simulator.stores.rows import statement_name

_ALWAYS = "attribute_exists(#pk) OR attribute_not_exists(#pk)"
#: Within so many seeds a worker gives back a lease that is not its own any more.
MOST = 50
#: A run with fewer events has little to be reduced.
_MANY = 20


def broken(reduced: Reduction, seed: int) -> Simulation:
    """Workers give back a task whoever holds it."""
    run = Simulation(seed, reduced=reduced)
    run.rows.mutate = lambda given: (
        replace(given, condition=_ALWAYS) if statement_name(given) == "release" else given
    )
    return run


@pytest.fixture(scope="module")
def failing() -> tuple[Make, Failure]:
    makes = (partial(broken, seed=seed) for seed in range(MOST))
    tried = ((make, failure_of(make)) for make in makes)
    return next((make, found) for make, found in tried if found and len(found.events) > _MANY)


def test_a_failing_run_keeps_only_the_events_that_it_needs(failing: tuple[Make, Failure]) -> None:
    make, failure = failing
    smallest = shrink(make, failure)
    assert smallest.promise == failure.promise
    assert len(smallest.events) < len(failure.events) / 5
    again = failure_of(make, smallest.reduced)
    assert again is not None
    assert again.message == smallest.message


def test_the_time_line_shows_each_event_and_the_write_that_broke_the_promise(
    failing: tuple[Make, Failure],
) -> None:
    make, failure = failing
    lines = "\n".join(time_line(make, failure))
    assert all(event in lines for event in failure.events)
    assert "A RULE IS BROKEN: release " in lines


def test_a_run_without_its_events_keeps_every_promise(failing: tuple[Make, Failure]) -> None:
    make, _ = failing
    assert failure_of(make, Reduction(keep=frozenset())) is None

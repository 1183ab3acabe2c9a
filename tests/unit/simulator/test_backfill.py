"""A simulated backfill keeps its promises, and the simulator notices one that does not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.simulator.backfill import Backfill
from tests.simulator.checks.rows import Violation
from tests.simulator.coverage import Coverage, statement_names
from tests.simulator.limits import LimitSimulation
from tests.simulator.run import Simulation
from tests.simulator.stores.rows import statement_name

SEEDS = 40
#: Within so many seeds what is broken on purpose must be found out.
MOST = 100
#: A job may have more of them than one array has.
_MANY_WORKERS = 100
_ALWAYS = "attribute_exists(#pk) OR attribute_not_exists(#pk)"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def test_no_seed_breaks_a_promise() -> None:
    coverage = Coverage()
    for seed in range(SEEDS):
        coverage.add(Backfill(seed).run().coverage)
    unused = set(coverage.never_applied())
    of_limits = {"raise rate", "cut rate", "push tat", "return quota"}
    rare = {"undo claim", "excuse loss", "cursor", "job adopt", *of_limits}
    assert unused <= rare, "the coordinator's statements must have been applied"


def test_a_seed_is_the_same_run_each_time() -> None:
    assert Backfill(5).run() == Backfill(5).run()


def test_each_statement_of_the_product_is_counted() -> None:
    assert len(statement_names()) == 36


def test_workers_that_do_not_know_how_few_they_are_leave_the_last_tasks() -> None:
    """They rank themselves among all that the job may have, and each finds others enough."""
    found = next(filter(None, map(violation_without_sizes, range(20 * MOST))), "nothing")
    assert "does not end" in found


def violation_without_sizes(seed: int) -> str:
    run = Backfill(seed)
    if run.shape.workers < _MANY_WORKERS:
        return ""
    run.fleet.array_size = lambda _element: None
    try:
        run.run()
    except Violation as found:
        return str(found)
    return ""


def run_of(kind: type[Simulation | Backfill | LimitSimulation], seed: int, broken: str) -> str:
    """What is found if the condition of a statement always holds."""
    run = kind(seed)
    rows = run.world.rows if isinstance(run, Backfill) else run.rows
    rows.mutate = lambda given: (
        replace(given, condition=_ALWAYS) if statement_name(given) == broken else given
    )
    try:
        run.run()
    except Violation as found:
        return str(found)
    return ""


@pytest.mark.parametrize(
    ("broken", "kind", "expected"),
    [
        ("claim", Simulation, "claim takes a task from leased to leased"),
        ("release", Simulation, ": release "),
        ("heartbeat", Backfill, ": heartbeat "),
        ("reserve now", LimitSimulation, "a limit's tat falls"),
    ],
)
def test_a_statement_without_its_condition_is_found_out(
    broken: str, kind: type[Simulation | Backfill | LimitSimulation], expected: str
) -> None:
    found = next(filter(None, (run_of(kind, seed, broken) for seed in range(MOST))), "nothing")
    assert expected in found

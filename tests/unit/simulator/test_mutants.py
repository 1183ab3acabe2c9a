"""Mutants are made from the product's own conditions, and the simulator finds a sample of them."""

from __future__ import annotations

import pytest

from slurm_worker.protocol.ports import Statement
from tests.simulator.mutants.conditions import Mutant, mutants_of, mutated
from tests.simulator.mutants.hunt import broken_condition, broken_order
from tests.simulator.mutants.ordering import ORDERS, Order
from tests.simulator.mutants.runs import Kind
from tests.simulator.mutants.screening import Difference, screen, screen_run
from tests.simulator.run import Simulation

#: Within so many seeds each mutant of the sample must be found.
MOST = 60


def test_a_condition_is_weakened_in_each_of_its_parts() -> None:
    condition = "#a = :a AND (attribute_not_exists(#b) OR (#b < :b AND #c = :c))"
    given = Statement("example", "SET #a = :a", condition, {})
    assert {mutant.broken: text for mutant, text in mutants_of(given).items()} == {
        "no condition": "attribute_exists(#pk) OR attribute_not_exists(#pk)",
        "without #a = :a": "attribute_not_exists(#b) OR (#b < :b AND #c = :c)",
        "without attribute_not_exists(#b) OR (#b < :b AND #c = :c)": "#a = :a",
        "without #b < :b": "#a = :a AND (attribute_not_exists(#b) OR #c = :c)",
        "#b <= :b": "#a = :a AND (attribute_not_exists(#b) OR (#b <= :b AND #c = :c))",
        "without #c = :c": "#a = :a AND (attribute_not_exists(#b) OR #b < :b)",
    }


def test_a_mutant_that_breaks_a_rule_while_screened_is_found_by_its_run() -> None:
    expected = next(found for seed in range(MOST) if (found := rule_broken_in(seed)))
    assert expected.rule in broken_condition(expected.mutant, expected.kind, expected.seed)


def rule_broken_in(seed: int) -> Difference | None:
    return next((each for each in screen(seed).found if each.rule), None)


def test_a_seed_in_which_a_mutant_never_differs_is_the_same_run() -> None:
    seed = next(seed for seed in range(MOST) if unchanged_in(seed))
    mutant, usual, broken = unchanged_in(seed)[0], Simulation(seed), Simulation(seed)
    broken.rows.mutate = lambda statement: mutated(statement, mutant)
    assert broken.run() == usual.run()


def unchanged_in(seed: int) -> list[Mutant]:
    """Mutants of the workers' statements that were tried in a seed, and never differed."""
    seen = screen_run(Kind.WORKERS, seed)
    return sorted(seen.met - seen.found.keys(), key=str)


@pytest.mark.parametrize(
    ("statement", "broken", "kind"),
    [
        ("claim", "without #state = :ready", Kind.WORKERS),
        ("release", "no condition", Kind.WORKERS),
        ("steal", "no condition", Kind.WORKERS),
        ("heartbeat", "no condition", Kind.WORKERS),
        ("reserve next", "without #used <= :most", Kind.LIMIT),
        ("reserve now", "without #tat < :floor", Kind.LIMIT),
        ("return quota", "no condition", Kind.LIMIT),
        ("new window", "no condition", Kind.LIMIT),
    ],
)
def test_a_broken_condition_is_found_out(statement: str, broken: str, kind: Kind) -> None:
    mutant = Mutant(statement, broken)
    assert any(broken_condition(mutant, kind, seed) for seed in range(MOST))


@pytest.mark.parametrize("order", ORDERS[:2], ids=str)
def test_a_broken_order_is_found_out(order: Order) -> None:
    assert any(broken_order(order, Kind.WORKERS, seed)[1] for seed in range(MOST))

"""Runs mutants until a promise is broken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.simulator.mutants import ordering
from tests.simulator.mutants.conditions import Mutant, mutated
from tests.simulator.mutants.ordering import Order
from tests.simulator.mutants.runs import Kind, table_of, what_breaks
from tests.simulator.mutants.screening import Difference


@dataclass(frozen=True, slots=True)
class Hunt:
    """What became of a mutant.

    Args:
        mutant: a broken condition or order.
        differs: the runs in which it differs, or for an order those that were tried.
        runs: how often the mutant was run.
        seed: the first seed that found it, and the run of that seed; None if none did.
        by: the promise that was broken; empty if none was.
    """

    mutant: Mutant | Order
    differs: int
    runs: int
    seed: int | None = None
    kind: Kind | None = None
    by: str = ""


def hunt_condition(mutant: Mutant, differences: Sequence[Difference] | None, most: int) -> Hunt:
    """Run a mutant where it differs, at most so often; first where it breaks a rule of the row."""
    differences = differences or ()
    likely = sorted(differences, key=lambda each: (not each.rule, each.seed))
    for runs, each in enumerate(likely[:most], 1):
        if by := broken_condition(mutant, each.kind, each.seed):
            return Hunt(mutant, len(differences), runs, each.seed, each.kind, by)
    return Hunt(mutant, len(differences), min(most, len(likely)))


def hunt_order(order: Order, seeds: Iterable[int]) -> Hunt:
    """Run a mutant with these seeds."""
    differs = runs = 0
    for seed in seeds:
        for kind in order.kinds:
            runs += 1
            exchanged, by = broken_order(order, kind, seed)
            differs += exchanged
            if by:
                return Hunt(order, differs, runs, seed, kind, by)
    return Hunt(order, differs, runs)


def broken_condition(mutant: Mutant, kind: Kind, seed: int) -> str:
    """The promise that a broken condition breaks in a run; empty if none."""
    run = kind.run(seed)
    table_of(run).mutate = lambda statement: mutated(statement, mutant)
    return what_breaks(run)


def broken_order(order: Order, kind: Kind, seed: int) -> tuple[bool, str]:
    """Whether a run has the order exchanged, and the promise that this breaks."""
    with ordering.broken(order) as put_off:
        by = what_breaks(kind.run(seed))
    return put_off.exchanged > 0, by

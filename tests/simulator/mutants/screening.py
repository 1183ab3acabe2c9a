"""Which mutants differ from the unbroken product in a seed, found in one unbroken run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from slurm_worker.protocol.ports import Refused, Row, Statement
from slurm_worker.testing import MemoryRows
from tests.simulator.mutants.conditions import Mutant, mutants_of
from tests.simulator.mutants.runs import Kind, table_of, what_breaks
from tests.simulator.rules import broken_rule
from tests.simulator.stores.rows import statement_name


@dataclass(frozen=True, slots=True)
class Difference:
    """The first write of a run that only a mutant's condition lets through.

    Args:
        rule: the rule of the row that this write breaks; empty if none.
    """

    mutant: Mutant
    kind: Kind
    seed: int
    rule: str


class Screen:
    """Tries every mutant of a statement where the unbroken statement is refused.

    A broken condition lets more through, so it can't differ where the statement is applied.
    """

    def __init__(self, kind: Kind, seed: int) -> None:
        self._kind = kind
        self._seed = seed
        #: All mutants of the statements that the run asked for and that were refused once
        self.met: set[Mutant] = set()
        self.found: dict[Mutant, Difference] = {}

    def refused(self, pk: str, sk: str, statement: Statement, row: Row | None) -> None:
        """A statement was refused on this row."""
        mutants = mutants_of(statement)
        self.met.update(mutants)
        for mutant, condition in mutants.items():
            if mutant not in self.found:
                rule = _written(pk, sk, row, replace(statement, condition=condition))
                if rule is not None:
                    self.found[mutant] = Difference(mutant, self._kind, self._seed, rule)


@dataclass(frozen=True, slots=True)
class Screened:
    """What the runs of a seed show of all mutants.

    Args:
        met: the mutants of the statements that were refused.
        found: where they differ first.
        broken: what the unbroken product breaks; then this seed says nothing of its mutants.
    """

    met: frozenset[Mutant] = frozenset()
    found: tuple[Difference, ...] = ()
    broken: str = ""


def screen(seed: int) -> Screened:
    """Screen all runs of a seed."""
    try:
        runs = [screen_run(kind, seed) for kind in Kind]
    except ValueError as error:
        return Screened(broken=str(error))
    found = tuple(each for run in runs for each in run.found.values())
    return Screened(frozenset().union(*(run.met for run in runs)), found)


def screen_run(kind: Kind, seed: int) -> Screen:
    """What one unbroken run has met.

    Raises:
        ValueError: if the unbroken product breaks a promise; then no mutant says anything.
    """
    run, seen = kind.run(seed), Screen(kind, seed)
    table_of(run).on_refusal = seen.refused
    if broken := what_breaks(run):
        raise ValueError(f"seed {seed}: {broken}")
    return seen


def _written(pk: str, sk: str, row: Row | None, statement: Statement) -> str | None:
    """The rule that a write breaks, perhaps none (empty); None if it is refused."""
    table = MemoryRows()
    if row is not None:
        table.put_new(row)
    try:
        result = table.update(pk, sk, statement)
    except ValueError as error:
        return str(error)
    if isinstance(result, Refused):
        return None
    return broken_rule(statement_name(statement), row or {}, result.row, statement.values)

"""How often each statement on the table was applied and refused, and each state was entered."""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from dataclasses import dataclass, field
from types import ModuleType

from slurm_worker.protocol.statements import jobs, tasks
from slurm_worker.rate_limits import statements as limits
from tests.simulator.engine.seen import Seen
from tests.simulator.stores.rows import WatchedRows

#: The first two have one condition, that the row exists, and it always does. A done row has the
#: winner of its marker, and nobody completes it with another one.
NEVER_REFUSED = frozenset({"job config", "job generation", "complete"})
#: In so many seeds each statement must be applied, and refused, so often.
FULL, LEAST_APPLIED, LEAST_REFUSED = 10_000, 200, 20
#: With fewer seeds a count may be lower by chance, by this factor.
_BY_CHANCE = 4
#: Every change of a state that the protocol allows: kind of row, state before, state after. A
#: dataset is published by an aggregation, and swept by gc.
TRANSITIONS = frozenset(
    {
        *(("job", "absent", "planning"), ("job", "planning", "open")),
        *(("round", "absent", "planning"), ("round", "planning", "open")),
        # A cancel takes a submission's number for no workers.
        *(("submit", "absent", "intent"), ("submit", "absent", "submitted")),
        *(("submit", "intent", "submitted"), ("submit", "intent", "refused")),
        *(("submit", "refused", "intent"), ("submit", "refused", "submitted")),
        *(("task", "absent", "ready"), ("task", "ready", "leased")),
        *(("task", "leased", "ready"), ("task", "leased", "done")),
        *(("task", "leased", "failed"), ("task", "leased", "quarantined")),
        # A retry puts tasks back.
        *(("task", "failed", "ready"), ("task", "quarantined", "ready")),
        # A late attempt has committed what was given back, or given up, meanwhile.
        *(("task", "ready", "done"), ("task", "failed", "done"), ("task", "quarantined", "done")),
        *(("dataset", "absent", "published"), ("dataset", "published", "published")),
        *(("dataset", "published", "swept"), ("dataset", "swept", "published")),
    }
)


@dataclass
class Coverage:
    """What became of the statements of some runs."""

    applied: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    #: By kind of row, state before and state after
    transitions: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    @classmethod
    def of(cls, rows: WatchedRows, seen: Seen) -> Coverage:
        """What one run's table and store have seen."""
        return cls(rows.applied, rows.refused, rows.transitions + seen.transitions)

    def add(self, other: Coverage) -> None:
        """Count another run's, too."""
        self.applied.update(other.applied)
        self.refused.update(other.refused)
        self.transitions.update(other.transitions)

    def never_applied(self) -> list[str]:
        """The named statements that no run has applied."""
        return [name for name in statement_names() if not self.applied[name]]

    def shortfalls(self, seeds: int) -> list[str]:
        """What happened too seldom in so many seeds, or must not happen."""
        part = min(1.0, seeds / FULL) / (1 if seeds >= FULL else _BY_CHANCE)
        lines = []
        for name in statement_names():
            for what, counts, least in (
                ("applied", self.applied, LEAST_APPLIED),
                ("refused", self.refused, 0 if name in NEVER_REFUSED else LEAST_REFUSED),
            ):
                if counts[name] < least * part:
                    lines.append(f"{name} is {what} {counts[name]} times, of {least * part:.0f}")
        for kind, before, after in sorted(TRANSITIONS | self.transitions.keys()):
            change = f"{kind}: {before} to {after}"
            if not self.transitions[kind, before, after]:
                lines.append(f"{change} never happens")
            if (kind, before, after) not in TRANSITIONS:
                lines.append(f"{change} is not a change that the protocol allows")
        return lines

    def table(self) -> str:
        """The counts, for people."""
        lines = [f"{'statement':24}{'applied':>12}{'refused':>12}"]
        for name in statement_names():
            refused = "never" if name in NEVER_REFUSED else f"{self.refused[name]:,}"
            lines.append(f"{name:24}{self.applied[name]:12,}{refused:>12}")
        lines.append(f"\n{'state':48}{'entered':>12}")
        for kind, before, after in sorted(TRANSITIONS | self.transitions.keys()):
            count = self.transitions[kind, before, after]
            lines.append(f"{f'{kind}: {before} to {after}':48}{count:12,}")
        return "\n".join(lines)


def statement_names() -> list[str]:
    """The name of each statement in the product's code; that of a shard's stage is one name."""
    return sorted(
        {name for module in (jobs, tasks, limits) for name in _names_in(module)} | {"stage"}
    )


def _names_in(module: ModuleType) -> list[str]:
    calls = (
        node
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Call)
    )
    return [
        call.args[0].value
        for call in calls
        if isinstance(call.func, ast.Name)
        and call.func.id in ("statement", "Statement")
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    ]

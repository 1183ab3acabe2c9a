"""How often each statement on the table was applied and refused, and each state was entered."""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from dataclasses import dataclass, field
from types import ModuleType

from slurm_worker.protocol.statements import jobs, tasks
from slurm_worker.rate_limits import statements as limits
from tests.simulator.faults import WatchedRows

#: Their only condition is that the row exists, and it always does.
NEVER_REFUSED = frozenset({"job config", "job generation"})


@dataclass
class Coverage:
    """What became of the statements of some runs."""

    applied: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    #: By kind of row, state before and state after
    transitions: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    @classmethod
    def of(cls, rows: WatchedRows) -> Coverage:
        """What one run's table has seen."""
        return cls(rows.applied, rows.refused, rows.transitions)

    def add(self, other: Coverage) -> None:
        """Count another run's, too."""
        self.applied.update(other.applied)
        self.refused.update(other.refused)
        self.transitions.update(other.transitions)

    def never_applied(self) -> list[str]:
        """The named statements that no run has applied."""
        return [name for name in statement_names() if not self.applied[name]]

    def never_refused(self) -> list[str]:
        """The named statements that may be refused and never were."""
        return [
            name
            for name in statement_names()
            if not self.refused[name] and name not in NEVER_REFUSED
        ]

    def table(self) -> str:
        """The counts, for people."""
        lines = [f"{'statement':24}{'applied':>12}{'refused':>12}"]
        for name in statement_names():
            refused = "never" if name in NEVER_REFUSED else f"{self.refused[name]:,}"
            lines.append(f"{name:24}{self.applied[name]:12,}{refused:>12}")
        lines.append(f"\n{'state':48}{'entered':>12}")
        for (kind, before, after), count in sorted(self.transitions.items()):
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

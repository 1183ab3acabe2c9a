"""The result of rounds of chaos, and the table of their faults by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos.sizes import Size


@dataclass
class Report:
    """The result of a round."""

    seed: int
    job_id: str
    faults: Counter[str] = field(default_factory=Counter)
    commands: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    submits: int = 0
    arrays: int = 0
    further_attempts: int = 0
    leases_lost: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The figures, as they are printed."""
        result = "FAILED" if self.problems else "passed"
        commands = ", ".join(f"{name} {count}" for name, count in sorted(self.commands.items()))
        return [
            (
                f"seed {self.seed}: {result} in {self.seconds:.0f} s; "
                f"{self.faults.total()} faults; {self.requests:,} requests through the proxies"
            ),
            (
                f"  {self.arrays} arrays, {self.submits} of them asked for when few were left; "
                f"attempts after a task's first: {self.further_attempts}; "
                f"leases lost: {self.leases_lost}"
            ),
            f"  commands by exit code: {commands}",
            *(f"  PROBLEM: {problem}" for problem in self.problems),
        ]


def table(reports: Sequence[Report], size: Size) -> list[str]:
    """A line for each kind of fault: how often in each round, and in all."""
    counts = [report.faults for report in reports]
    others = sorted({kind for each in counts for kind in each} - set(size.kinds))
    kinds = [*size.kinds, *others]
    width = max(map(len, kinds))
    rows = [(kind, [each[kind] for each in counts]) for kind in kinds]
    rows.append(("all", [each.total() for each in counts]))
    head = "".join(f"{f'seed {report.seed}':>14}" for report in reports)
    return [
        f"{'kind of fault':<{width}}{head}{'all':>8}",
        *(
            f"{kind:<{width}}{''.join(f'{n:>14,}' for n in numbers)}{sum(numbers):>8,}"
            for kind, numbers in rows
        ),
    ]


def never_provoked(reports: Sequence[Report], size: Size) -> list[str]:
    """The kinds of faults that none of the rounds had."""
    return [kind for kind in size.kinds if not any(report.faults[kind] for report in reports)]

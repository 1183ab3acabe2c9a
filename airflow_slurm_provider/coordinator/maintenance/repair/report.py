"""What a repair came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Repaired:
    """What was brought right.

    Args:
        dry_run: nothing was written.
        job: whether the job's row, or its entry in the register of jobs, was missing.
        rounds: numbers of the rounds whose rows were missing.
        submissions: their labels, likewise.
        tasks: rows of tasks that were missing.
        completed: rows, missing ones among them, that are done now as their markers say.
        unmended: what can't be brought right, and what to do about it.
    """

    job_id: str
    dry_run: bool
    job: bool = False
    rounds: list[int] = field(default_factory=list)
    submissions: list[str] = field(default_factory=list)
    tasks: int = 0
    completed: int = 0
    unmended: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether anything was wrong that can be brought right."""
        return bool(self.job or self.rounds or self.submissions or self.tasks or self.completed)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return asdict(self)

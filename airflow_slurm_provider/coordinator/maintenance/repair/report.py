"""The result of a repair."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class RepairResult:
    """What was repaired."""

    job_id: str
    dry_run: bool  #: nothing was written
    job: bool = False  #: whether the job's row, or its entry in the register of jobs, was missing
    #: Numbers of the rounds whose rows were missing
    rounds: list[int] = field(default_factory=list)
    submissions: list[str] = field(default_factory=list)  #: their labels, likewise
    tasks: int = 0  #: rows of tasks that were missing
    completed: int = 0  #: rows, including missing ones, that are done now as their markers say
    #: What can't be repaired, and what to do about it
    unrepaired: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether anything was wrong that can be repaired."""
        return bool(self.job or self.rounds or self.submissions or self.tasks or self.completed)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        document = asdict(self)
        document["unmended"] = document.pop("unrepaired")
        return document

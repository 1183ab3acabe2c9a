"""What `bootstrap` does and reports: one step for each resource or setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from airflow_slurm_provider.coordinator.maintenance.bootstrap.clients import Unsupported


class StepResult(str, Enum):
    """The result of a step."""

    THERE = "there"  #: it was correct already; nothing was done
    MADE = "made"  #: by this call
    WOULD_MAKE = "would_make"  #: a call without dry run makes it
    DIFFERS = "differs"  #: jobs run with it; only --update changes it
    UNSUPPORTED = "unsupported"  #: the store has no such setting, or can't apply it
    MISSING = "missing"  #: jobs can't run, and this call was not told to make it
    UNFIT = "unfit"  #: jobs can't run with it, and it can't be changed

    @property
    def serves(self) -> bool:
        """Whether jobs can run with what is there."""
        return self not in (StepResult.MISSING, StepResult.UNFIT)


@dataclass(frozen=True, slots=True)
class Step:
    """One resource or setting, by its stable name; `fix` is empty where all is well."""

    name: str
    outcome: StepResult
    found: str
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        outcome = self.outcome.value
        return {"name": self.name, "outcome": outcome, "found": self.found, "mend": self.fix}


@dataclass(frozen=True, slots=True)
class BootstrapResult:
    """All steps, in their order."""

    steps: tuple[Step, ...]
    dry_run: bool

    @property
    def ok(self) -> bool:
        """Whether jobs can run with what is there, or would be."""
        return all(step.outcome.serves for step in self.steps)

    @property
    def counts(self) -> dict[str, int]:
        """Number of steps by result."""
        counts = Counter(step.outcome for step in self.steps)
        return {outcome.value: counts[outcome] for outcome in StepResult}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {
            "ok": self.ok,
            "dry_run": self.dry_run,
            "counts": self.counts,
            "steps": [step.to_dict() for step in self.steps],
        }


@dataclass(frozen=True, slots=True)
class BootstrapRequest:
    """The request: what to create beside the table."""

    bucket: bool = False  #: create the bucket where there is none
    point_in_time: bool = False  #: the table can be restored to any second of the last 35 days
    deletion_protection: bool = False  #: the table can't be deleted by mistake
    update: bool = False  #: also change what is there and differs
    dry_run: bool = False  #: do nothing

    def settle(
        self,
        name: str,
        good: Callable[[], bool],
        make: Callable[[], object],
        texts: tuple[str, str],
        *,
        new: bool,
    ) -> Step:
        """Check one setting, and make it where the request allows that.

        Args:
            name: of the step.
            good: whether the setting is correct; not called for a new resource.
            make: makes it so.
            texts: what it is like when it is so, and what it is like else.
            new: what it is a setting of was made by this call, so that nobody else has set it.
        """
        as_wanted, otherwise = texts
        try:
            if not new and good():
                return Step(name, StepResult.THERE, as_wanted)
            if not new and not self.update:
                fix = "slurmctl bootstrap --update changes it"
                return Step(name, StepResult.DIFFERS, otherwise, fix)
            if self.dry_run:
                return Step(name, StepResult.WOULD_MAKE, as_wanted)
            make()
        except Unsupported as error:
            return Step(name, StepResult.UNSUPPORTED, error.problem, error.fix)
        return Step(name, StepResult.MADE, as_wanted)

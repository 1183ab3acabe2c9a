"""The findings of `doctor`: one per check, in the order of the checks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Level(str, Enum):
    """The result of a check."""

    PASS = "pass"  # noqa: S105  not a password: the check found no problem
    WARN = "warn"  #: jobs run, with less speed, comfort or explanations
    FAIL = "fail"  #: jobs can't run, or go wrong
    SKIP = "skip"  #: not checked; `found` says why


@dataclass(frozen=True, slots=True)
class Finding:
    """One check, by its stable name; `fix` is empty where all is well."""

    check: str
    level: Level
    found: str
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        level = self.level.value
        return {"check": self.check, "level": level, "found": self.found, "mend": self.fix}


@dataclass(frozen=True, slots=True)
class Report:
    """All findings."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(finding.level is not Level.FAIL for finding in self.findings)

    @property
    def counts(self) -> dict[str, int]:
        """Number of checks by result."""
        counts = Counter(finding.level for finding in self.findings)
        return {level.value: counts[level] for level in Level}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {
            "ok": self.ok,
            "counts": self.counts,
            "checks": [finding.to_dict() for finding in self.findings],
        }

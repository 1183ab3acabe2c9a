"""What an examination finds: one finding per check, in the order in which they were made."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from slurm_worker.errors import describe


class Level(str, Enum):
    """How a check came out."""

    PASS = "pass"  # noqa: S105  no password, but: as it should be
    WARN = "warn"  #: jobs run, and something is lost: speed, comfort, an explanation
    FAIL = "fail"  #: jobs can't run, or not rightly
    SKIP = "skip"  #: not checked; `found` says why


@dataclass(frozen=True, slots=True)
class Finding:
    """One check.

    Args:
        check: its name, which is stable.
        level: how it came out.
        found: what was found, in a line.
        mend: what to do about it, in a line; empty where all is well.
    """

    check: str
    level: Level
    found: str
    mend: str = ""

    @classmethod
    def of_error(cls, check: str, error: Exception, mend: str) -> Finding:
        """A failed check; the errors of this project carry their own mend behind a semicolon."""
        found, _, own = describe(error).partition("; ")
        return cls(check, Level.FAIL, found, own or mend)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {**asdict(self), "level": self.level.value}


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
        """How many checks came out how."""
        counts = Counter(finding.level for finding in self.findings)
        return {level.value: counts[level] for level in Level}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {
            "ok": self.ok,
            "counts": self.counts,
            "checks": [finding.to_dict() for finding in self.findings],
        }

"""Pure decisions: what a crash means, and for whom.

A process that dies of its handler (a segmentation fault, the kernel's out-of-memory
killer, a hang that its supervisor ends) leaves a note on the task's row: which item it
was on. An item on which enough processes have died is not run again; it is recorded as
failed, and the rest of its task lives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from slurm_worker.errors import ErrorClass

#: A hang is certain; a death may have had another cause, so it takes two.
_DEATHS = {ErrorClass.TIMEOUT: 1}
_DEATHS_ELSE = 2
#: A task whose processes died this often is not run again.
MOST_CRASHES = 20


@dataclass(frozen=True, slots=True)
class Crash:
    """One death of a process.

    Args:
        error_class: what it died of.
        position: the item that it ran; None where it ran several, or none.
    """

    error_class: ErrorClass
    position: int | None

    def to_text(self) -> str:
        """As the row holds it: ``position class``, or ``- class``."""
        return f"{'-' if self.position is None else self.position} {self.error_class.value}"

    @classmethod
    def from_text(cls, text: str) -> Crash:
        """Read what `to_text` wrote."""
        position, _, error_class = text.partition(" ")
        return cls(ErrorClass(error_class), None if position == "-" else int(position))


def poison_items(crashes: Iterable[str]) -> dict[int, ErrorClass]:
    """The items not to be run again, with the class that they fail with."""
    deaths: Counter[int] = Counter()
    found: dict[int, ErrorClass] = {}
    for crash in map(Crash.from_text, crashes):
        if crash.position is None:
            continue
        deaths[crash.position] += 1
        if deaths[crash.position] >= _DEATHS.get(crash.error_class, _DEATHS_ELSE):
            found[crash.position] = crash.error_class
    return found


def run_isolated(crashes: Iterable[str]) -> bool:
    """Whether to run one item at a time, so that the next death can be traced to its item."""
    return any(True for _ in crashes)

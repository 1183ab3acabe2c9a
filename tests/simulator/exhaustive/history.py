"""What processes have done so far, as a tree: each place is a sequence of answers.

A process's state is a function of the answers that it got. So two schedules that gave it the same
answers have it in the same place, and its code runs once for both. From a place that another
schedule continued from, a new process is brought there by the same answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from slurm_worker.errors import ServiceError
from tests.simulator.exhaustive.process import Next, Process, Request, Wait
from tests.simulator.exhaustive.shared import Contents

#: The answer to a request that no try of the SDK got an answer to.
NO_ANSWER = "no answer"
#: Processes that are kept where they stand; each holds a few files.
_MOST_KEPT = 300
#: A process that has not begun.
_BEGIN = Wait(0.0)


@dataclass(frozen=True, slots=True)
class Program:
    """What a process runs; `main` returns how it ended."""

    name: str
    main: Callable[[Process], str]


@dataclass(eq=False, slots=True)
class Place:
    """A process after some answers."""

    number: int
    program: Program
    next: Next
    parent: Place | None = None
    answer: Any = None  #: the last one
    at: float = 0.0  #: when it came
    children: dict[tuple[Any, float], Place] = field(default_factory=dict)


class Histories:
    """All places of all processes of a search."""

    def __init__(self, contents: Contents) -> None:
        self.places: list[Place] = []
        self.begun = 0  #: processes that were started, to count what a search costs
        self._contents = contents
        self._starts: dict[Program, Place] = {}
        self._kept: OrderedDict[Place, Process] = OrderedDict()

    def start(self, program: Program) -> Place:
        """Before its first step."""
        if program not in self._starts:
            self._starts[program] = self._add(program, _BEGIN)
        return self._starts[program]

    def after(self, place: Place, answer: Any, now: float) -> Place:
        """Where the process is when it got this answer at this time."""
        found = place.children.get((answer, now))
        if found is None:
            process = self._kept.pop(place, None) or self._led_to(place)
            made = process.go_on(self._value(place.next, answer), now)
            found = self._add(place.program, made, place, answer, now)
            place.children[answer, now] = found
            if isinstance(made, (Request, Wait)):
                self._keep(found, process)
        return found

    def close(self) -> None:
        """End every process."""
        while self._kept:
            self._kept.popitem()[1].end()

    def _add(
        self,
        program: Program,
        what: Next,
        parent: Place | None = None,
        answer: Any = None,
        at: float = 0.0,
    ) -> Place:
        place = Place(len(self.places), program, what, parent, answer, at)
        self.places.append(place)
        return place

    def _value(self, asked: Next, answer: Any) -> Any:
        if answer == NO_ANSWER:
            return ServiceError("the service does not answer")
        return self._contents.value(asked, answer) if isinstance(asked, Request) else None

    def _led_to(self, place: Place) -> Process:
        """A new process, brought to a place by the answers on the way."""
        path = []
        while place.parent is not None:
            path.append(place)
            place = place.parent
        process = Process(place.program.name, place.program.main)
        self.begun += 1
        for step in reversed(path):
            assert step.parent is not None
            made = process.go_on(self._value(step.parent.next, step.answer), step.at)
            if not _alike(made, step.next):
                raise AssertionError(
                    f"{process.name} does {made} and did {step.next} after the same answers: its "
                    "state depends on something else, which must be decided in `process.py`"
                )
        return process

    def _keep(self, place: Place, process: Process) -> None:
        self._kept[place] = process
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)[1].end()


def _alike(one: Next, other: Next) -> bool:
    """Whether a process does the same."""
    if isinstance(one, Request) and isinstance(other, Request):
        return (one.service, one.verb, one.arguments) == (
            other.service,
            other.verb,
            other.arguments,
        )
    return one == other

"""The state of a world, and what one step makes of it.

A step is a request of one process: the only points at which processes meet. Requests take no time.
Time advances only when every process sleeps, or when one stands still for long by a choice.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from tests.simulator.exhaustive.history import NO_ANSWER, Histories, Place, Program
from tests.simulator.exhaustive.process import Ended, Request, Wait
from tests.simulator.exhaustive.shared import Array, Contents, Shared, slurm_id

_ARRAY = re.compile(r"^#SBATCH --array=0-(\d+)", re.MULTILINE)
#: A process that stands still does so until the next multiple of this time, at least: longer than a
#: lease and its margin, and than all waits of a worker.
LONG_S = 10.0
#: Every sleep ends at a multiple of this time, so that schedules meet at the same times.
TICK_S = 1.0
_GONE = -1


class What(Enum):
    """What happens at a turn of a process."""

    STEP = "continues"
    STILL = "stands still, longer than a lease"
    NO_ANSWER = "asks, and gets no answer"
    AGAIN = "loses the reply, and asks again"
    IN_DOUBT = "is heard, and gets no answer"
    KILLED = "is killed before"

    @property
    def fault(self) -> bool:
        """Whether it counts as a fault."""
        return self not in (What.STEP, What.STILL)


#: The faults of a request that only reads. If a reader is killed, or asks again, nothing changes
#: that a kill before its next write, or a turn of others, would not change.
READ_FAULTS = (What.NO_ANSWER,)
WRITE_FAULTS = (What.NO_ANSWER, What.AGAIN, What.IN_DOUBT, What.KILLED)


class Standing(NamedTuple):
    """A process."""

    place: int  #: its place's number; below 0 if it is gone
    wakes: float = 0.0  #: it does nothing before


class State(NamedTuple):
    """A world at one time."""

    shared: Shared
    processes: tuple[Standing, ...]
    now: float = 0.0


class Machine:
    """Makes steps.

    Args:
        worker: makes the program of an array's element, from its name and its script's options.
    """

    def __init__(self, worker: Callable[[str, dict[str, str]], Program]) -> None:
        self.contents = Contents()
        self.histories = Histories(self.contents)
        self._worker = worker
        self._workers: dict[str, Program] = {}

    def started(self, state: State, program: Program) -> State:
        """With a process more."""
        place = self.histories.start(program)
        return state._replace(processes=(*state.processes, Standing(place.number, state.now)))

    def place(self, state: State, process: int) -> Place:
        """Where a process is that is not gone."""
        return self.histories.places[state.processes[process].place]

    def with_worker(self, state: State, number: int) -> State:
        """With another worker of the first array, under this number."""
        options = _options(state.shared.arrays[0])
        return self.started(state, self._program(f"{slurm_id(0)}_{number}", options))

    def enabled(self, state: State) -> list[int]:
        """The processes that can continue now."""
        return [
            number
            for number, standing in enumerate(state.processes)
            if standing.place >= 0 and standing.wakes <= state.now
        ]

    def distinct(self, state: State, processes: list[int]) -> list[int]:
        """Without those that are as good as an earlier one: workers of an array, not begun."""
        found, arrays = [], set()
        for number in processes:
            place = self.place(state, number)
            array = place.program.name.partition("_")[0]
            if place.parent is None and place.program in self._workers.values():
                if array in arrays:
                    continue
                arrays.add(array)
            found.append(number)
        return found

    def later(self, state: State) -> State | None:
        """When all processes sleep: the time of the first to wake up; None if all are gone."""
        waking = [standing.wakes for standing in state.processes if standing.place >= 0]
        return state._replace(now=min(waking)) if waking else None

    def asked(self, state: State, process: int) -> Request | None:
        """The request that a process is about to make; None if it begins or wakes up."""
        pending = self.place(state, process).next
        return pending if isinstance(pending, Request) else None

    def step(self, state: State, process: int, what: What) -> tuple[State, str]:
        """The state after a turn of this process, and the promise that was broken, if any."""
        if what is What.STILL:
            wakes = (state.now // LONG_S + 2) * LONG_S
            return _standing(state, process, state.processes[process]._replace(wakes=wakes)), ""
        if what is What.KILLED:
            return _standing(state, process, Standing(_GONE)), ""
        place, answer, broken = self.place(state, process), None, ""
        if what is What.NO_ANSWER:
            answer = NO_ANSWER
        elif isinstance(place.next, Request):
            alive = self._alive(state)
            shared, answer, broken = self.contents.make(state.shared, place.next, state.now, alive)
            state = self._with_arrays(state, shared)
            if what is What.AGAIN:
                return state, broken
            if what is What.IN_DOUBT:
                answer = NO_ANSWER
        if state.processes[process].place == _GONE:
            return state, broken
        after = self.histories.after(place, answer, state.now)
        wakes = _next_tick(state.now, after.next.seconds) if isinstance(after.next, Wait) else 0.0
        gone = isinstance(after.next, Ended)
        standing = Standing(_GONE) if gone else Standing(after.number, wakes)
        return _standing(state, process, standing), broken

    def _alive(self, state: State) -> set[str]:
        """The names of the processes that are not gone."""
        places = self.histories.places
        return {
            places[standing.place].program.name
            for standing in state.processes
            if standing.place >= 0
        }

    def _with_arrays(self, state: State, shared: Shared) -> State:
        """Start the elements of a new array; end those of a cancelled one."""
        before, state = state.shared.arrays, state._replace(shared=shared)
        if shared.arrays is before:
            return state
        for place, array in enumerate(shared.arrays):
            if place >= len(before):
                for program in self._elements(slurm_id(place), array):
                    state = self.started(state, program)
            elif array.cancelled and not before[place].cancelled:
                state = self._without(state, f"{slurm_id(place)}_")
        return state

    def _elements(self, array_id: str, array: Array) -> list[Program]:
        found = _ARRAY.search(array.script)
        count = int(found.group(1)) + 1 if found else 1
        options = _options(array)
        return [self._program(f"{array_id}_{number}", options) for number in range(count)]

    def _program(self, name: str, options: dict[str, str]) -> Program:
        key = f"{name} {options}"
        if key not in self._workers:
            self._workers[key] = self._worker(name, options)
        return self._workers[key]

    def _without(self, state: State, prefix: str) -> State:
        places = self.histories.places
        return state._replace(
            processes=tuple(
                Standing(_GONE)
                if each.place >= 0 and places[each.place].program.name.startswith(prefix)
                else each
                for each in state.processes
            )
        )


def _options(array: Array) -> dict[str, str]:
    """The worker's options in a script."""
    words = shlex.split(array.script.rstrip().splitlines()[-1])
    return dict(zip(words[-6::2], words[-5::2], strict=True))


def _next_tick(now: float, seconds: float) -> float:
    """When a sleep ends: late, at a full tick."""
    return float(math.ceil((now + seconds) / TICK_S) * TICK_S)


def _standing(state: State, process: int, standing: Standing) -> State:
    processes = list(state.processes)
    processes[process] = standing
    return state._replace(processes=tuple(processes))

"""Every schedule of a small world, within bounds, by its distinct states.

The search is that of CHESS (Musuvathi et al., OSDI 2008) with iterative context bounding (Musuvathi
and Qadeer, PLDI 2007). A *preemption* takes the turn from a process that could continue, or lets it
stand still before a write, for longer than a lease. A change of turn costs nothing where a process
sleeps or ends. Schedules with few preemptions and faults come first, so the first broken promise
needs the fewest.

A state is the content of table, store and cluster, the time, and the place of each process in its
history (`history.py`). A state that was reached before, by the same process and with no more
preemptions and faults, has been searched: all that can follow is the same.

Two reductions are made. Before a request that no other process can see, the turn stays: a change of
turn there gives the same states as one before the next request (`Bounds.private`). And of several
workers of an array that have not begun, the first begins first: they differ in their names only.
"""

from __future__ import annotations

import hashlib
import marshal
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.simulator.checks.rows import Violation
from tests.simulator.exhaustive.machine import (
    READ_FAULTS,
    WRITE_FAULTS,
    Machine,
    State,
    What,
)
from tests.simulator.exhaustive.process import Request

_NOBODY = -1
#: A number of ways that was not counted yet.
_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is tried.

    Args:
        most: the most preemptions and faults of a schedule, as pairs; one of them must allow it.
        turns: the search ends after so many. Then it has tried all schedules with few preemptions
            and faults, and some of those with more (`Found.complete`).
        private: whether no other process of the world can see a request, or what it does.
    """

    most: tuple[tuple[int, int], ...] = ((3, 2),)
    turns: int = 400_000
    private: Callable[[Request], bool] = lambda _request: False

    def allow(self, spent: tuple[int, int]) -> bool:
        """Whether a schedule with so many preemptions and faults is tried."""
        return any(spent[0] <= most[0] and spent[1] <= most[1] for most in self.most)

    def pairs(self) -> list[tuple[int, int]]:
        """Every number of preemptions and faults that is tried, in this order."""
        preemptions = range(max(pair[0] for pair in self.most) + 1)
        faults = range(max(pair[1] for pair in self.most) + 1)
        found = [(one, other) for one in preemptions for other in faults]
        return sorted(filter(self.allow, found), key=_order)


@dataclass(eq=False, slots=True)
class Turn:
    """One turn of a schedule, and the state after it."""

    before: Turn | None
    process: int
    what: What
    state: State | None  #: None once all that follows is known
    current: int = _NOBODY  #: the process that continues if nothing is preempted
    spent: tuple[int, int] = (0, 0)  #: preemptions and faults so far
    node: int = 0

    def path(self) -> list[tuple[int, What]]:
        """The turns of the schedule, from the first."""
        turns, turn = [], self
        while turn.before is not None:
            turns.append((turn.process, turn.what))
            turn = turn.before
        return turns[::-1]


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search."""

    schedules: int  #: with so many preemptions and faults as are `complete`
    states: int
    turns: int  #: steps that were made
    ends: int  #: distinct states in which every process has ended
    seconds: float
    #: The most preemptions and faults of the schedules that were all tried, as `Bounds.most`
    complete: tuple[tuple[int, int], ...] = ()
    broken: str = ""  #: the broken promise; empty if none was found
    path: tuple[tuple[int, What], ...] = ()  #: the schedule that breaks it
    spent: tuple[int, int] = (0, 0)  #: its preemptions and faults


@dataclass
class Search:
    """One search.

    Args:
        machine: makes the steps.
        first: the state from which every schedule begins.
        bounds: what is tried.
        at_end: raises a `Violation` for an end state that breaks a promise, reached with so many
            faults.
        after_write: the same after a turn.
    """

    machine: Machine
    first: State
    bounds: Bounds
    at_end: Callable[[State, int], None]
    after_write: Callable[[State, State], None] = lambda _before, _after: None
    _numbers: dict[bytes, int] = field(default_factory=dict)
    _spent: list[list[tuple[int, int]]] = field(default_factory=list)
    _edges: list[array[int]] = field(default_factory=list)
    _ends: set[int] = field(default_factory=set)
    _queues: defaultdict[tuple[int, int], list[Turn]] = field(
        default_factory=lambda: defaultdict(list)
    )
    _turns: int = 0

    def run(self) -> Found:
        """Try everything, or stop at the first promise that is broken."""
        began = time.monotonic()
        broken, last = "", Turn(None, _NOBODY, What.STEP, self.first)
        self._reach(last, self.first)
        try:
            for last in self._in_order():
                self._follow(last)
        except _Broken as error:
            broken, last = str(error), error.turn
        complete = [] if broken else self._complete()
        return Found(
            self._schedules(complete) if complete else 0,
            len(self._numbers),
            self._turns,
            len(self._ends),
            time.monotonic() - began,
            _largest(complete),
            broken,
            tuple(last.path()) if broken else (),
            last.spent,
        )

    def _in_order(self) -> Iterator[Turn]:
        """The turns whose consequences are unknown; those with the least preemptions and faults."""
        while self._queues:
            spent = min(self._queues, key=_order)
            queue = self._queues[spent]
            while queue:
                turn = queue.pop()
                if not self._is_known(turn.node, spent, itself=False):
                    if self._turns >= self.bounds.turns:
                        return
                    yield turn
                turn.state = None
            del self._queues[spent]

    def _follow(self, turn: Turn) -> None:
        """Make every turn that can follow."""
        state, machine = turn.state, self.machine
        assert state is not None
        current = turn.current
        enabled = machine.enabled(state)
        while not enabled:
            later = machine.later(state)
            if later is None:
                self._end(turn, state)
                return
            state, current = later, _NOBODY
            enabled = machine.enabled(state)
        runs = current in enabled
        asked = machine.asked(state, current) if runs else None
        alone = asked is not None and self.bounds.private(asked)
        for process in [current] if alone else machine.distinct(state, enabled):
            cost = runs and process != current
            for what in self._whats(state, process, alone=alone, turns=cost):
                spent = (
                    turn.spent[0] + cost + (what is What.STILL),
                    turn.spent[1] + what.fault,
                )
                if self.bounds.allow(spent):
                    self._make(turn, state, process, what, spent)

    def _whats(self, state: State, process: int, *, alone: bool, turns: bool) -> list[What]:
        asked = self.machine.asked(state, process)
        found = [What.STEP]
        if asked is not None and asked.writes and not alone and not turns:
            found.append(What.STILL)
        if asked is not None:
            found += WRITE_FAULTS if asked.writes and not alone else READ_FAULTS
        return found

    def _make(
        self, turn: Turn, state: State, process: int, what: What, spent: tuple[int, int]
    ) -> None:
        self._turns += 1
        try:
            after, broken = self.machine.step(state, process, what)
        except Violation as violation:
            # A process has seen it.
            made = Turn(turn, process, what, None, spent=spent)
            raise _Broken(str(violation), made) from violation
        if after == state:
            return  # A write that was refused, or has been made, and is made again.
        standing = after.processes[process]
        goes_on = what is What.STEP and standing.place >= 0 and standing.wakes <= after.now
        made = Turn(turn, process, what, after, process if goes_on else _NOBODY, spent)
        if broken:
            raise _Broken(broken, made)
        if after.shared is not state.shared:
            try:
                self.after_write(state, after)
            except Violation as violation:
                raise _Broken(str(violation), made) from violation
        self._reach(made, after)
        costs = (spent[0] - turn.spent[0]) << 1 | (spent[1] - turn.spent[1])
        self._edges[turn.node].append(made.node << 2 | costs)

    def _reach(self, turn: Turn, state: State) -> None:
        """Note that a state was reached, and how; it is followed later."""
        shared = state.shared
        content = marshal.dumps(
            (
                turn.current,
                state.now,
                tuple(map(tuple, state.processes)),
                (shared.rows, shared.objects, tuple(map(tuple, shared.arrays)), shared.withdrawn),
            ),
            2,
        )
        key = hashlib.blake2b(content, digest_size=12).digest()
        number = self._numbers.setdefault(key, len(self._spent))
        if number == len(self._spent):
            self._spent.append([])
            self._edges.append(array("Q"))
        turn.node = number
        if not self._is_known(number, turn.spent, itself=True):
            self._spent[number].append(turn.spent)
            self._queues[turn.spent].append(turn)

    def _is_known(self, number: int, spent: tuple[int, int], *, itself: bool) -> bool:
        """Whether a state was reached with no more preemptions and faults than these."""
        return any(
            each[0] <= spent[0] and each[1] <= spent[1] and (itself or each != spent)
            for each in self._spent[number]
        )

    def _end(self, turn: Turn, state: State) -> None:
        self._ends.add(turn.node)
        try:
            self.at_end(state, turn.spent[1])
        except Violation as violation:
            raise _Broken(str(violation), turn) from violation

    def _complete(self) -> list[tuple[int, int]]:
        """The numbers of preemptions and faults of which every schedule was tried."""
        first = min(map(_order, self._queues), default=None)
        return [pair for pair in self.bounds.pairs() if first is None or _order(pair) < first]

    def _schedules(self, pairs: list[tuple[int, int]]) -> int:
        """The number of schedules of these pairs, by the number of ways from each state.

        States may follow each other in a circle, at the cost of a preemption or a fault. So the
        ways are counted by what was spent before, the most first.
        """
        ways: dict[tuple[int, int], list[int]] = {}
        for spent in sorted(pairs, key=_order, reverse=True):
            ways[spent] = self._ways(spent, ways)
        return ways[0, 0][0]

    def _ways(
        self, spent: tuple[int, int], later: Mapping[tuple[int, int], list[int]]
    ) -> list[int]:
        """From each state, the number of ways to an end, after so many preemptions and faults.

        Args:
            spent: preemptions and faults so far.
            later: the same after more of them.
        """
        after = [later.get((spent[0] + (costs >> 1), spent[1] + (costs & 1))) for costs in range(4)]
        found = [_UNKNOWN] * len(self._edges)
        for first in range(len(found)):
            stack = [first]
            while stack:
                node = stack[-1]
                # An edge may be there twice.
                edges = set(self._edges[node])
                free = [edge >> 2 for edge in edges if not edge & 3]
                waiting = [child for child in free if found[child] == _UNKNOWN]
                if waiting:
                    stack += waiting
                    continue
                stack.pop()
                found[node] = (node in self._ends) + sum(found[child] for child in free)
                for edge in edges:
                    of_child = after[edge & 3] if edge & 3 else None
                    found[node] += 0 if of_child is None else of_child[edge >> 2]
        return found


def _order(pair: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """Few preemptions and faults together come first."""
    return sum(pair), pair


def _largest(pairs: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Those that no other contains."""
    return tuple(
        pair
        for pair in reversed(pairs)
        if not any(other != pair and other[0] >= pair[0] and other[1] >= pair[1] for other in pairs)
    )


class _Broken(Exception):
    def __init__(self, message: str, turn: Turn) -> None:
        super().__init__(message)
        self.turn = turn

"""A Slurm cluster in virtual time: its controller, its accounting, and the elements of its arrays.

The twin answers as Slurm does where our protocol depends on it. `squeue` forgets an array some time
after its end. `sacct` learns late of a start and of an end. An array may be partly pending. An
element may be preempted, and starts again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from airflow_slurm_provider.slurm.states import ElementState
from tests.simulator.engine.schedule import Host, Killed, Schedule, SimSignal

ACCOUNT = "lab"
#: Seconds between SIGTERM and SIGKILL.
KILL_WAIT_S = 30.0
_ARRAY = re.compile(r"^#SBATCH --array=0-(\d+)", re.MULTILINE)
_BEGIN = re.compile(r"^#SBATCH --begin=now\+(\d+)", re.MULTILINE)
_RUNS = (ElementState.RUNNING, ElementState.COMPLETING)
#: How arrays of others are and end: no element of ours does so.
FOREIGN_STATE, FOREIGN_END = ElementState.SUSPENDED, ElementState.DEADLINE
_ALIVE = (ElementState.PENDING, *_RUNS, FOREIGN_STATE)
#: The daemons don't answer, scancel does nothing, or slurmctld forgets all jobs.
BREAKDOWNS = ("slurmctld", "slurmdbd", "scancel", "slurmctld's state")
_FIRST_ID = 100
#: Within so many seconds a node ends a job that the controller does not know.
_ORPHAN_S = 60.0
_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class ClusterRules:
    """What is peculiar to a site. Times are in seconds."""

    slots: int = 64  #: elements that may run at the same time
    start_s: float = 1.0  #: mean time from submission, or from a free slot, to a start
    accounting: bool = True  #: whether the site keeps accounting
    account_s: float = 5.0  #: most time until `sacct` shows a start or an end
    purge_s: float = 300.0  #: how long `squeue` shows an element that has ended
    max_array_size: int = 1001
    submit_limit: int = 10_000  #: elements that the account may have in the queue


@dataclass
class Start:
    """One start of an element, as the accounting has it."""

    state: ElementState
    at: float
    shown_from: float  #: when `sacct` shows it
    exit_code: str = "0:0"
    ended: float | None = None
    end_shown_from: float = 0.0


@dataclass(eq=False)
class ArrayElement:
    """One element of an array."""

    array: Array
    number: int
    stop: SimSignal  #: SIGTERM to the latest start
    state: ElementState = ElementState.PENDING
    restarts: int = 0
    starts: list[Start] = field(default_factory=list)
    ended: float = 0.0
    hosts: list[Host] = field(default_factory=list)  #: its processes
    requeued: bool = False  #: it starts again when it has ended
    end: ElementState | None = None  #: the state that it will have; by its exit code if None

    @property
    def alive(self) -> bool:
        """Whether it waits or runs."""
        return self.state in _ALIVE

    @property
    def name(self) -> str:
        """As `squeue` shows it."""
        return f"{self.array.slurm_job_id}_{self.number}"


@dataclass(eq=False)
class Array:
    """An array, as it was submitted."""

    slurm_job_id: int
    name: str
    script: str
    place: str  #: folder of its submission on the login node
    submitted: float
    begin: float
    elements: list[ArrayElement] = field(default_factory=list)
    foreign: bool = False  #: of somebody else who uses the same account
    forgotten: bool = False  #: the controller has lost its state since

    @property
    def alive(self) -> bool:
        """Whether an element waits or runs."""
        return any(element.alive for element in self.elements)


class SubmitRefused(Exception):
    """What `sbatch` prints when it refuses a script."""


#: Runs the script of an element until it exits; returns the exit code.
Launch = Callable[[ArrayElement], int]


class Controller:
    """``slurmctld`` and ``slurmdbd``; its methods take no time.

    Args:
        schedule: the simulated time.
        rng: decides when elements start and when the accounting shows it.
        rules: what is peculiar to the site.
    """

    def __init__(self, schedule: Schedule, rng: random.Random, rules: ClusterRules) -> None:
        self.rules = rules
        self.launch: Launch = lambda _element: 0
        self.arrays: list[Array] = []
        #: Called with each new array of ours.
        self.on_submit: Callable[[Array], None] = lambda _array: None
        #: Called with an array that ``scancel`` chooses.
        self.on_cancel: Callable[[Array], None] = lambda _array: None
        #: Reason to refuse the next scripts; empty for none.
        self.refusal = ""
        self.down_until = 0.0
        self.accounting_down_until = 0.0
        self._schedule = schedule
        self._rng = rng
        self._host = Host("slurmctld")
        self._next_id = _FIRST_ID
        #: Until when `scancel` exits with 0 and does nothing.
        self.deaf_until = 0.0

    # --- commands ---------------------------------------------------------------

    def submit(self, name: str, script: str, place: str, option: str = "") -> int:
        """``sbatch``: the id of the new array; an ``--array`` option replaces the script's.

        Raises:
            SubmitRefused: with what it prints.
        """
        if self.refusal:
            raise SubmitRefused(self.refusal)
        found = _ARRAY.search(f"#SBATCH --array={option}" if option else script)
        count = int(found.group(1)) + 1 if found else 1
        if count > self.rules.max_array_size:
            raise SubmitRefused("sbatch: error: Batch job submission failed: Invalid job array")
        queued = sum(each.alive for array in self._known() for each in array.elements)
        if queued + count > self.rules.submit_limit:
            raise SubmitRefused("sbatch: error: AssocMaxSubmitJobLimit")
        begin = _BEGIN.search(script)
        now = self._schedule.now
        array = self._made(name, count)
        array.script, array.place = script, place
        array.begin = now + (int(begin.group(1)) if begin else 0)
        self.on_submit(array)
        self.arrays.append(array)
        self._dispatch_later(array.begin - now)
        return array.slurm_job_id

    def submit_foreign(self, name: str, count: int, seconds: float) -> None:
        """Somebody else's array, on other nodes: it runs for some time, and ends in its way."""
        array = self._made(name, count)
        array.foreign = True
        self.arrays.append(array)
        now = self._schedule.now
        for element in array.elements:
            element.state = FOREIGN_STATE
            element.starts.append(Start(FOREIGN_STATE, now, now + self._late()))

        def end() -> None:
            self._schedule.sleep(seconds)
            for element in array.elements:
                self._ended(element, FOREIGN_END, "0:15")

        self._schedule.spawn(self._host, end)

    def _made(self, name: str, count: int) -> Array:
        now = self._schedule.now
        array = Array(self._next_id, name, "", "", now, now)
        self._next_id += 1
        array.elements = [
            ArrayElement(array, number, SimSignal(self._schedule)) for number in range(count)
        ]
        return array

    def lose_state(self) -> None:
        """``slurmctld`` starts without its files: it knows no job, and ids begin again.

        What waited is gone. What ran runs on until its node asks, or until it ends. The accounting
        keeps what it has, and learns no end.
        """
        for array in self._known():
            array.forgotten = True
            for element in array.elements:
                if element.state is ElementState.PENDING:
                    element.state, element.ended = ElementState.CANCELLED, self._schedule.now
                elif element.alive and not array.foreign:
                    self._kill_later(element)
        self._next_id = _FIRST_ID

    def break_down(self, what: str, rng: random.Random) -> None:
        """One of `BREAKDOWNS` happens."""
        now = self._schedule.now
        if what == "slurmctld":
            self.down_until = now + rng.uniform(1, 120)
        elif what == "slurmdbd":
            self.accounting_down_until = now + rng.uniform(1, 120)
        elif what == "scancel":
            self.deaf_until = now + rng.uniform(1, 60)
        else:
            # Others get the ids that ours have had.
            self.lose_state()
            for number in range(rng.randint(0, 4)):
                self.submit_foreign(f"of-others.{number}", rng.randint(1, 4), rng.uniform(1, 1000))

    def _kill_later(self, element: ArrayElement) -> None:
        wait = self._rng.uniform(0, _ORPHAN_S)

        def kill() -> None:
            self._schedule.sleep(wait)
            self.kill(element, ElementState.NODE_FAIL)

        self._schedule.spawn(self._host, kill)

    def _known(self) -> list[Array]:
        return [array for array in self.arrays if not array.forgotten]

    def cancel(self, name: str, slurm_job_id: str = "") -> None:
        """``scancel``: by name or by id where they are given."""
        if self._schedule.now < self.deaf_until:
            return
        for array in self._known():
            if name in ("", array.name) and slurm_job_id in ("", str(array.slurm_job_id)):
                self.on_cancel(array)
                for element in array.elements:
                    self._cancel(element)

    def requeue(self, element: ArrayElement) -> None:
        """``scontrol requeue``, or preemption: the element ends, and starts again."""
        if not element.array.forgotten:
            self._stop(element, ElementState.PREEMPTED, requeued=True)

    def _stop(self, element: ArrayElement, end: ElementState, *, requeued: bool = False) -> None:
        """SIGTERM to an element that runs; SIGKILL follows."""
        if element.state is not ElementState.RUNNING:
            return
        element.state, element.end, element.requeued = ElementState.COMPLETING, end, requeued
        element.stop.set()
        start = element.starts[-1]

        def kill() -> None:
            self._schedule.sleep(KILL_WAIT_S)
            if start.ended is None:
                self.kill(element, end)

        self._schedule.spawn(self._host, kill)

    def kill(self, element: ArrayElement, state: ElementState, *, requeued: bool = False) -> None:
        """End an element at once, as the loss of its node does."""
        if not element.starts or element.starts[-1].ended is not None:
            return
        # What was cancelled does not run again, whatever ends it.
        cancelled = element.end is ElementState.CANCELLED
        element.requeued = (element.requeued or requeued) and not cancelled
        for host in element.hosts:
            self._schedule.kill(host)
        self._ended(element, state, "0:9")

    # --- queries ----------------------------------------------------------------

    def queue(self) -> Iterator[ArrayElement]:
        """The elements that ``squeue -t all`` shows."""
        horizon = self._schedule.now - self.rules.purge_s
        for array in self._known():
            for element in array.elements:
                if element.alive or element.ended > horizon:
                    yield element

    def has_purged(self, element: ArrayElement) -> bool:
        """Whether ``squeue`` shows an element no longer."""
        return not element.alive and element.ended <= self._schedule.now - self.rules.purge_s

    def is_late(self, start: Start) -> bool:
        """Whether ``sacct`` does not show a start yet, or not its end."""
        now = self._schedule.now
        return start.shown_from > now or (start.ended is not None and start.end_shown_from > now)

    def accounted(self) -> Iterator[tuple[ArrayElement, Start, ElementState, str]]:
        """Element, start, state and exit code of each record of ``sacct -D``."""
        now = self._schedule.now
        for array in self.arrays:
            for element in array.elements:
                for start in element.starts:
                    if start.shown_from > now:
                        continue
                    ended = start.ended is not None and start.end_shown_from <= now
                    running = FOREIGN_STATE if array.foreign else ElementState.RUNNING
                    state = start.state if ended else running
                    yield element, start, state, start.exit_code if ended else "0:0"

    def running(self) -> list[ArrayElement]:
        """The elements of ours that run."""
        return [
            element
            for array in self._known()
            for element in array.elements
            if element.state in _RUNS
        ]

    # --- the life of an element -------------------------------------------------

    def _cancel(self, element: ArrayElement) -> None:
        if element.state is ElementState.PENDING:
            element.state, element.ended = ElementState.CANCELLED, self._schedule.now
            now, shown = self._schedule.now, self._schedule.now + self._late()
            element.starts.append(Start(ElementState.CANCELLED, now, shown, "0:0", now, shown))
        elif element.state is ElementState.COMPLETING:
            element.requeued, element.end = False, ElementState.CANCELLED
        else:
            self._stop(element, ElementState.CANCELLED)

    def _late(self) -> float:
        return self._rng.uniform(0, self.rules.account_s)

    def _dispatch_later(self, seconds: float) -> None:
        wait = seconds + self._rng.expovariate(1 / self.rules.start_s)

        def dispatch() -> None:
            self._schedule.sleep(wait)
            self._dispatch()

        self._schedule.spawn(self._host, dispatch)

    def _dispatch(self) -> None:
        now, free = self._schedule.now, self.rules.slots - len(self.running())
        for array in self._known():
            for element in array.elements:
                if free > 0 and element.state is ElementState.PENDING and array.begin <= now:
                    free -= 1
                    self._start(element)

    def _start(self, element: ArrayElement) -> None:
        host = Host(f"{element.name}-r{element.restarts}")
        element.state, element.requeued, element.end = ElementState.RUNNING, False, None
        element.hosts, element.stop = [host], SimSignal(self._schedule)
        now = self._schedule.now
        start = Start(ElementState.RUNNING, now, now + self._late())
        element.starts.append(start)

        def run() -> None:
            try:
                code = self.launch(element)
            except Killed:
                return
            if start.ended is None:
                natural = ElementState.FAILED if code else ElementState.COMPLETED
                self._ended(element, element.end or natural, f"{code}:0")

        self._schedule.spawn(host, run)

    def _ended(self, element: ArrayElement, state: ElementState, exit_code: str) -> None:
        now = self._schedule.now
        if element.array.forgotten:
            element.state, element.ended, element.hosts = state, now, []
            for start in element.starts[-1:]:
                start.ended, start.end_shown_from = now, _NEVER
            return
        again = element.requeued
        if element.starts and element.starts[-1].ended is None:
            start = element.starts[-1]
            start.state = ElementState.REQUEUED if again else state
            start.exit_code, start.ended = exit_code, now
            start.end_shown_from = max(start.shown_from, now + self._late())
        if again:
            element.state, element.requeued = ElementState.PENDING, False
            element.restarts += 1
            self._dispatch_later(self.rules.start_s)
        else:
            element.state, element.ended = state, now
            self._dispatch_later(0.0)

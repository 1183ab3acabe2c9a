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
from tests.simulator.schedule import Host, Killed, Schedule, SimSignal

ACCOUNT = "lab"
#: Seconds between SIGTERM and SIGKILL.
KILL_WAIT_S = 30.0
_ARRAY = re.compile(r"^#SBATCH --array=0-(\d+)", re.MULTILINE)
_BEGIN = re.compile(r"^#SBATCH --begin=now\+(\d+)", re.MULTILINE)
_ALIVE = (ElementState.PENDING, ElementState.RUNNING, ElementState.COMPLETING)


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
        #: Called with each new array.
        self.on_submit: Callable[[Array], None] = lambda _array: None
        #: Reason to refuse the next scripts; empty for none.
        self.refusal = ""
        self.down_until = 0.0
        self.accounting_down_until = 0.0
        self._schedule = schedule
        self._rng = rng
        self._host = Host("slurmctld")
        self._next_id = 100

    # --- commands ---------------------------------------------------------------

    def submit(self, name: str, script: str, place: str) -> int:
        """``sbatch``: the id of the new array.

        Raises:
            SubmitRefused: with what it prints.
        """
        if self.refusal:
            raise SubmitRefused(self.refusal)
        found = _ARRAY.search(script)
        count = int(found.group(1)) + 1 if found else 1
        if count > self.rules.max_array_size:
            raise SubmitRefused("sbatch: error: Batch job submission failed: Invalid job array")
        queued = sum(each.alive for array in self.arrays for each in array.elements)
        if queued + count > self.rules.submit_limit:
            raise SubmitRefused("sbatch: error: AssocMaxSubmitJobLimit")
        begin = _BEGIN.search(script)
        now = self._schedule.now
        array = Array(
            self._next_id, name, script, place, now, now + (int(begin.group(1)) if begin else 0)
        )
        self._next_id += 1
        array.elements = [
            ArrayElement(array, number, SimSignal(self._schedule)) for number in range(count)
        ]
        self.on_submit(array)
        self.arrays.append(array)
        self._dispatch_later(array.begin - now)
        return array.slurm_job_id

    def cancel(self, name: str, slurm_job_id: str = "") -> None:
        """``scancel`` by name, and by id where one is given."""
        for array in self.arrays:
            if array.name == name and slurm_job_id in ("", str(array.slurm_job_id)):
                for element in array.elements:
                    self._cancel(element)

    def requeue(self, element: ArrayElement) -> None:
        """``scontrol requeue``, or preemption: the element ends, and starts again."""
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
        for array in self.arrays:
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
                    state = start.state if ended else ElementState.RUNNING
                    yield element, start, state, start.exit_code if ended else "0:0"

    def running(self) -> list[ArrayElement]:
        """The elements that run."""
        found = (element for array in self.arrays for element in array.elements)
        return [element for element in found if element.state in _ALIVE[1:]]

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
        for array in self.arrays:
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

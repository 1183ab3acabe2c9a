"""Virtual time, and the order of simulated threads.

Each simulated thread is a greenlet, and they share one real thread. A simulated thread gives way to
others where it would wait: when it sleeps, makes a request, or waits for a signal. The next one is
that whose time comes first, so that a run depends only on its seed.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")


class Killed(BaseException):
    """The simulated process of this thread has been killed."""


class Overrun(Exception):
    """The simulated time is over, and something still runs."""


@dataclass(eq=False)
class Host:
    """A simulated process; it is killed or paused as a whole.

    Args:
        name: for messages.
        skew_s: its clock's error.
    """

    name: str
    skew_s: float = 0.0
    dead: bool = False
    resumes: float = 0.0
    #: Called when it is killed, before its threads see it; code that cleans up runs afterwards, as
    #: it never would in a process that was killed.
    when_killed: Callable[[], None] | None = None


@dataclass(eq=False)
class _Thread:
    host: Host
    #: Which of its places in the queue counts; earlier ones are void.
    turn: int = 0
    #: When a signal interrupts what it does, and what the signal does then.
    alarm: tuple[float, Callable[[], None]] | None = None
    green: greenlet = field(init=False)


class Schedule:
    """Who runs, and the time.

    Args:
        until: simulated seconds after which a run counts as hanging.
    """

    def __init__(self, until: float) -> None:
        self.now = 0.0
        self.overrun = False
        self._until = until
        self._queue: list[tuple[float, int, int, _Thread]] = []
        self._order = itertools.count()
        self._current: _Thread | None = None
        self._alive: dict[_Thread, None] = {}
        self._failure: BaseException | None = None
        self._hub = getcurrent()

    def run(self, host: Host, main: Callable[[], None]) -> None:
        """Run `main` and all that it starts, until nothing is left.

        Raises:
            Overrun: if the time is over before that.
        """
        self._hub = getcurrent()
        self.spawn(host, main)
        while self._failure is None and (thread := self._next()) is not None:
            self._current = thread
            thread.green.switch()
        for thread in list(self._alive):
            # It waits for a signal that nobody is left to set, or the run has failed.
            self._current, thread.host.dead = thread, True
            if thread.green:  # it has begun
                thread.green.throw(Killed)
        self._current = None
        if self._failure is not None:
            raise self._failure
        if self.overrun:
            raise Overrun(f"something still runs after {self._until:.0f} s")

    def spawn(self, host: Host, function: Callable[[], None]) -> None:
        """Run `function` in a thread of `host`, from now on."""
        thread = _Thread(host)
        thread.green = greenlet(lambda: self._live(thread, function), self._hub)
        self._alive[thread] = None
        self._enqueue(thread, self.now)

    def extend(self, seconds: float) -> None:
        """A run may last longer than was said at its begin."""
        self._until += seconds

    def fail(self, error: Exception) -> None:
        """End the run with this error, wherever its threads are."""
        self._failure = self._failure or error

    def sleep(self, seconds: float) -> None:
        """Let the others run for this time.

        Raises:
            Killed: if the caller's host was killed meanwhile.
        """
        self._check()
        thread, until = self.current, self.now + max(0.0, seconds)
        alarm = thread.alarm if thread.alarm is not None and thread.alarm[0] < until else None
        if alarm is None and self._nobody_is_due(until) and thread.host.resumes <= until:
            # Nobody else would run meanwhile: time passes without a switch.
            self.now = until
            return
        self._enqueue(thread, until if alarm is None else max(self.now, alarm[0]))
        self._hub.switch()
        self._check()
        if alarm is not None:
            thread.alarm = None
            alarm[1]()

    def _nobody_is_due(self, until: float) -> bool:
        if until > self._until or self._failure is not None:
            return False
        return not self._queue or self._queue[0][0] > until

    def wait(self) -> None:
        """Let the others run until `wake`.

        Raises:
            Killed: if the caller's host was killed before or meanwhile.
        """
        self._check()
        self.current.turn += 1
        self._hub.switch()
        self._check()

    def _check(self) -> None:
        if self.current.host.dead or self.overrun:
            raise Killed

    @property
    def current(self) -> _Thread:
        """The thread that runs."""
        assert self._current is not None
        return self._current

    def wake(self, thread: _Thread) -> None:
        """Let a waiting thread continue now."""
        if thread in self._alive:
            self._enqueue(thread, self.now)

    def kill(self, host: Host) -> None:
        """End a host's threads where they wait, now or when they resume."""
        if host.dead:
            return
        if host.when_killed is not None:
            host.when_killed()
        host.dead = True
        for thread in self._alive:
            if thread.host is host and thread is not self._current:
                self._enqueue(thread, self.now)

    def pause(self, host: Host, seconds: float) -> None:
        """Stop all threads of a host for this time, as SIGSTOP does."""
        host.resumes = max(host.resumes, self.now + seconds)

    def resume(self, host: Host) -> None:
        """End a pause now: the threads that wait for its end continue."""
        end, host.resumes = host.resumes, self.now
        for when, _, turn, thread in list(self._queue):
            if thread.host is host and turn == thread.turn and when == end > self.now:
                self._enqueue(thread, self.now)

    def _live(self, thread: _Thread, function: Callable[[], None]) -> None:
        try:
            if not thread.host.dead and not self.overrun:
                function()
        except Killed:
            pass
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            self._alive.pop(thread, None)
            thread.turn += 1

    def _enqueue(self, thread: _Thread, when: float) -> None:
        thread.turn += 1
        heapq.heappush(self._queue, (when, next(self._order), thread.turn, thread))

    def _next(self) -> _Thread | None:
        while self._queue:
            when, _, turn, thread = heapq.heappop(self._queue)
            if turn != thread.turn:
                continue
            if thread.host.resumes > when and not thread.host.dead:
                self._enqueue(thread, thread.host.resumes)
                continue
            self.now = max(self.now, when)
            if self.now > self._until and not self.overrun:
                self.overrun = True
                for other in self._alive:
                    if other is not thread:
                        self._enqueue(other, self.now)
            return thread
        return None


class SimSignal:
    """`threads.Signal` in virtual time."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._set = False
        self._waiting: list[_Thread] = []

    def set(self) -> None:
        """See `threads.Signal.set`."""
        self._set = True
        for thread in self._waiting:
            self._schedule.wake(thread)
        self._waiting.clear()

    def is_set(self) -> bool:
        """See `threads.Signal.is_set`."""
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        """See `threads.Signal.wait`."""
        if self._set:
            return True
        thread = self._schedule.current
        self._waiting.append(thread)
        if timeout is None:
            self._schedule.wait()
        else:
            self._schedule.sleep(timeout)
        if not self._set:
            self._waiting.remove(thread)
        return self._set


class SimPending(Generic[T]):
    """`threads.Pending` in virtual time."""

    def __init__(self, schedule: Schedule) -> None:
        self._ended = SimSignal(schedule)
        self._value: Any = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """See `threads.Pending.done`."""
        return self._ended.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait for the end, at most `timeout` seconds; whether it has ended."""
        return self._ended.wait(timeout)

    def result(self) -> T:
        """See `threads.Pending.result`."""
        self._ended.wait()
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value

    def run(self, function: Callable[[], T]) -> None:
        """Run the function and keep its result."""
        try:
            self._value = function()
        except Killed:
            raise
        except BaseException as error:
            self._error = error
        self._ended.set()


class SimThreads:
    """`threads.Threads` of one simulated process."""

    def __init__(self, schedule: Schedule, host: Host) -> None:
        self._schedule = schedule
        self._host = host

    def start(self, function: Callable[[], T]) -> SimPending[T]:
        """See `threads.Threads.start`."""
        pending: SimPending[T] = SimPending(self._schedule)
        self._schedule.spawn(self._host, lambda: pending.run(function))
        return pending

    def signal(self) -> SimSignal:
        """See `threads.Threads.signal`."""
        return SimSignal(self._schedule)


class SimClock:
    """`ports.Clock` of one simulated process: wrong by its host's skew."""

    def __init__(self, schedule: Schedule, host: Host, epoch: float = 1_700_000_000.0) -> None:
        self._schedule = schedule
        self._host = host
        self._epoch = epoch

    def now(self) -> float:
        """See `ports.Clock.now`."""
        return self._epoch + self._schedule.now + self._host.skew_s

    def boot_time(self) -> float:
        """See `ports.Clock.boot_time`."""
        return self._schedule.now

    def sleep(self, seconds: float) -> None:
        """See `ports.Clock.sleep`."""
        self._schedule.sleep(seconds)

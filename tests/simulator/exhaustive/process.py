"""One simulated process, which stops at each of its requests until its next turn.

A process is a greenlet. What it does depends only on its program, its name, and on the answers that
it got with their times: its tokens are made of its name and a count, its random numbers are fixed.
"""

from __future__ import annotations

import datetime as dt
import random
import secrets
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from unittest import mock

from greenlet import getcurrent, greenlet

from slurm_worker.aggregate.job import aggregation
from tests.simulator.engine.chance import run_now
from tests.simulator.engine.schedule import Killed

T = TypeVar("T")
#: The time of day at which a world begins, in seconds.
EPOCH = 1_700_000_000.0


@dataclass(eq=False, slots=True)
class Request:
    """A request that a process is about to make."""

    service: str  #: ``table``, ``store`` or ``slurm``
    verb: str
    arguments: tuple[Any, ...]
    writes: bool
    #: What the service has made of it, by what it found: it is asked again in many schedules.
    known: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wait:
    """The process sleeps."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Ended:
    """The process has ended by itself."""

    result: str


#: What a process does next.
Next = Request | Wait | Ended


class Process:
    """A process that runs `main`; `main` returns a word for how it ended."""

    def __init__(self, name: str, main: Callable[[Process], str]) -> None:
        self.name = name
        self.now = 0.0
        self._main = main
        self._dead = False
        self._draws = 0
        self._green = greenlet(self._live)

    def go_on(self, answer: object, now: float) -> Next:
        """Begin, or take an answer at this time; an exception is raised in the process."""
        self.now = now
        _RUNNING.append(self)
        self._green.parent = getcurrent()
        try:
            found: Next = self._green.switch(answer)
        finally:
            _RUNNING.pop()
        return found

    def end(self) -> None:
        """Free what it holds; what it does meanwhile reaches no service."""
        self._dead = True
        if self._green and not self._green.dead:
            self._green.parent = getcurrent()
            self._green.throw(Killed)

    # --- as the process sees it --------------------------------------------------

    def ask(self, request: Request | Wait) -> Any:
        """Make a request, or sleep, when it is this process's turn."""
        if self._dead:
            raise Killed
        answer = self._green.parent.switch(request)
        if self._dead:
            raise Killed
        if isinstance(answer, Exception):
            raise answer
        return answer

    def sleep(self, seconds: float) -> None:
        """Wait; not at all for no time."""
        if seconds > 0:
            self.ask(Wait(seconds))

    def draw(self) -> int:
        """A number of 48 bits that no other draw of any process has."""
        self._draws += 1
        return (self._draws << 32) | zlib.crc32(self.name.encode())

    def _live(self, _first: object) -> Ended:
        try:
            return Ended(self._main(self))
        except Killed:
            return Ended("killed")


#: The process that runs; the last one, where one starts another.
_RUNNING: list[Process] = []


class FixedChance(random.Random):
    """Always the first of what could be drawn: so processes collide as often as they can."""

    def __init__(self, process: Process) -> None:
        super().__init__(0)
        self._process = process

    def random(self) -> float:
        """The least."""
        return 0.0

    def uniform(self, a: float, b: float) -> float:
        """The least."""
        return a

    def getrandbits(self, k: int, /) -> int:
        """A number that is drawn once."""
        return self._process.draw() % (1 << k)

    def sample(self, population: Sequence[T], k: int, **_kwargs: object) -> list[T]:  # type: ignore[override]  # fewer kinds of arguments
        """The first ones."""
        return list(population[:k])

    def shuffle(self, x: MutableSequence[Any], *_args: object) -> None:
        """Leave the order."""


class Clock:
    """`ports.Clock` of a process; all clocks agree."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def now(self) -> float:
        """See `ports.Clock.now`."""
        return EPOCH + self._process.now

    def boot_time(self) -> float:
        """See `ports.Clock.boot_time`."""
        return self._process.now

    def sleep(self, seconds: float) -> None:
        """See `ports.Clock.sleep`."""
        self._process.sleep(seconds)


class LateSignal:
    """`threads.Signal` of a process without threads."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._set = False

    def set(self) -> None:
        """See `threads.Signal.set`."""
        self._set = True

    def is_set(self) -> bool:
        """See `threads.Signal.is_set`."""
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        """See `threads.Signal.wait`; nobody sets it meanwhile."""
        if not self._set:
            assert timeout is not None, "nobody is left to set this signal"
            self._process.sleep(timeout)
        return self._set


class LatePending(Generic[T]):
    """`threads.Pending` of a function that runs when its result is asked for."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._done = False
        self._value: Any = None
        self._error: Exception | None = None

    def done(self) -> bool:
        """See `threads.Pending.done`."""
        return self._done

    def result(self) -> T:
        """See `threads.Pending.result`."""
        if not self._done:
            try:
                self._value = self._function()
            except Exception as error:
                self._error = error
            self._done = True
        if self._error is not None:
            raise self._error
        value: T = self._value
        return value


class LateThreads:
    """`threads.Threads` without threads: a function runs when another part waits for its result.

    That is one order of the many that threads have. So a worker is one sequence of requests. Its
    lease on the next task comes after the last item, its commit before the next task, and no
    heartbeat is sent. The sampled simulation has the others.
    """

    def __init__(self, process: Process) -> None:
        self._process = process

    def start(self, function: Callable[[], T]) -> LatePending[T]:
        """See `threads.Threads.start`."""
        return LatePending(function)

    def signal(self) -> LateSignal:
        """See `threads.Threads.signal`."""
        return LateSignal(self._process)


@contextmanager
def decided() -> Iterator[None]:
    """Let the running process decide tokens and the time; run no real thread."""
    real = time.time

    def uuid4() -> uuid.UUID:
        # The first digits differ, too: tokens are cut off.
        return uuid.UUID(int=_RUNNING[-1].draw() << 80)

    def now() -> float:
        return EPOCH + _RUNNING[-1].now if _RUNNING else real()

    class Dates:
        """In place of the module `datetime`."""

        timezone = dt.timezone

        class datetime(dt.datetime):
            @classmethod
            def now(cls, tz: dt.tzinfo | None = None) -> Dates.datetime:
                return cls.fromtimestamp(now(), tz)

    def randbelow(limit: int) -> int:
        return _RUNNING[-1].draw() % limit

    with (
        mock.patch.object(uuid, "uuid4", uuid4),
        mock.patch.object(time, "time", now),
        mock.patch.object(aggregation, "dt", Dates),
        mock.patch.object(secrets, "randbelow", randbelow),
        mock.patch.object(ThreadPoolExecutor, "submit", run_now),
    ):
        yield

"""What every way of calling a handler shares: its failures, its second tries.

Three ways, by the handler's kind: one after the other or in threads (`runner.py`), as
coroutines (`async_runner.py`), in batches (`batch_runner.py`). Outcomes are journaled by
the calling thread alone. Makes no AWS request but for rate limits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from slurm_worker.errors import (
    TRANSIENT,
    ClassRule,
    ErrorClass,
    FatalError,
    ItemError,
    ServiceError,
    classify,
    describe,
    place_of,
    retry_after_of,
)
from slurm_worker.execution.flight_recorder import Recorder
from slurm_worker.execution.handler import RAISED, Context, Handler, HandlerResources
from slurm_worker.protocol.job_config import WorkerConfig
from slurm_worker.protocol.ports import ITEM_FAILED, Clock
from slurm_worker.protocol.slices import TaskItems
from slurm_worker.rate_limits.limiter import MOST_RETRY_AFTER_S, Stopped
from slurm_worker.results.journal import Journal, Outcome
from slurm_worker.results.parts import ToLines, error_outcome, ok_outcome, to_lines

#: Seconds between two looks at whether to stop, each with a write of what is journaled.
LOOK_S = 0.05
_PAUSE_LOOK_S = 0.5
#: What ends the task, not the item: the handler says so, or a service of ours is away.
NOT_THE_ITEM = (FatalError, ServiceError)


class Throttle(Protocol):
    """The job's rate limits, as the runner uses them."""

    @property
    def unlimited(self) -> bool:
        """Whether there is none."""

    def acquire(self, name: str | None) -> None:
        """Wait for a token of one limit, or of each; raises `Stopped`."""

    async def acquire_async(self, name: str | None) -> None:
        """The same in a coroutine."""

    def penalize(self, retry_after_s: float | None) -> None:
        """The server said 429."""


class ItemTimeout(ItemError):
    """The item took longer than `worker.item_timeout`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(ErrorClass.TIMEOUT, f"not done after {seconds:g} s; see item_timeout")


@dataclass(frozen=True, slots=True)
class Calls:
    """What every way of calling shares.

    Args:
        handler: the user's functions.
        shared: the part of the context that is the same for all items.
        config: concurrency, tries, backoff, timeout.
        pace: the rate limits.
        stopping: true once no more items shall be taken.
        clock: for backoff and times of day.
        rng: jitter.
        recorder: told which item is being run, for whoever finds the process dead.
        to_lines: turns a result into lines, or refuses it.
        rules: the job's own on errors.
        places: where in its code the handler has failed so far.
    """

    handler: Handler
    shared: HandlerResources
    config: WorkerConfig
    pace: Throttle
    stopping: Callable[[], bool]
    clock: Clock
    rng: random.Random
    recorder: Recorder
    to_lines: ToLines = to_lines
    rules: Sequence[ClassRule] = ()
    places: set[str] = field(default_factory=set)

    def again_in(self, error: BaseException, tries: int) -> float | None:
        """The seconds to wait before another try after so many; None for no other try."""
        error_class = classify(error, self.rules)
        retry_after = retry_after_of(error)
        if error_class is ErrorClass.RATE_LIMITED:
            self.pace.penalize(retry_after)
        if error_class in TRANSIENT and tries < self.config.tries and not self.stopping():
            # Full jitter, after "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
            ceiling = min(self.config.max_backoff_s, self.config.backoff_s * 2 ** (tries - 1))
            asked = min(retry_after or 0.0, MOST_RETRY_AFTER_S)
            return max(asked, self.rng.uniform(0, ceiling))
        return None

    def pauses(self, seconds: float) -> Iterator[float]:
        """The sleeps of a wait before another try; fewer where the worker stops meanwhile."""
        left = seconds
        while left > 0 and not self.stopping():
            self.recorder.waits(self.clock.boot_time())
            yield min(left, _PAUSE_LOOK_S)
            left -= _PAUSE_LOOK_S

    def pause(self, seconds: float) -> None:
        """Wait before another try; see `pauses`."""
        for each in self.pauses(seconds):
            self.clock.sleep(each)

    def failed(self, position: int, items: TaskItems, error: BaseException, tries: int) -> Outcome:
        """The outcome of an item that is not tried again here; it holds the item as planned.

        A handler's bug is told with its place; the first at each place with its traceback.
        """
        error_class, message = classify(error, self.rules), describe(error)
        details: dict[str, object] = {}
        bug = error_class is ErrorClass.HANDLER_BUG
        place = place_of(error, self.handler.folder) if bug else ""
        if place:
            details["place"] = place
            if place not in self.places:
                self.places.add(place)
                details["exc_info"] = error
        key = items.keys[position]
        self.shared.logger.warning(
            ITEM_FAILED,
            item=key,
            error_class=error_class.value,
            error=message,
            **details,
        )
        return error_outcome(
            position,
            key,
            error_class,
            message,
            place=place,
            tries=tries,
            at=self.clock.now(),
            item=items.text(position),
        )


class Runner(Protocol):
    """One way of calling the handler."""

    def run(self, items: TaskItems, todo: Sequence[int], attempt: int, journal: Journal) -> None:
        """Run the items at the positions `todo`; journal what becomes of each.

        Each call of the handler gets copies of its items that no other call had. Returns
        early when the worker is stopping.

        Raises:
            FatalError: if the handler raised one.
            ServiceError: if a service of ours can't be reached.
        """

    def close(self) -> None:
        """End what was started."""


def retry(
    calls: Calls,
    position: int,
    items: TaskItems,
    error: BaseException,
    attempt: int,
    handle: Callable[..., Any],
) -> Outcome | None:
    """Go on with an item that failed once; None if the worker stops meanwhile.

    Called when the error is handled: what another try raises would name it as its context
    else, and be classified by it.

    Raises:
        FatalError: if the handler raised one.
    """
    key = items.keys[position]
    tries = 1
    while True:
        wait_s = calls.again_in(error, tries)
        if wait_s is None:
            return calls.failed(position, items, error, tries)
        calls.pause(wait_s)
        if calls.stopping():
            return None
        tries += 1
        try:
            result = handle(items.take(position), Context(calls.shared, key, attempt))
            return ok_outcome(position, key, result, calls.to_lines)
        except Stopped:
            return None
        except NOT_THE_ITEM:
            raise
        except RAISED as again:
            error = again

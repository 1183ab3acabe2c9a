"""What all ways of calling a handler share: its failures, and its further tries.

There are three ways, by the handler's kind: one item after the other or in threads
(`runner.py`), as coroutines (`async_runner.py`), in batches (`batch_runner.py`). Only the
calling thread journals outcomes. The only AWS requests are those of rate limits.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from slurm_worker import errors
from slurm_worker.errors import ErrorClass, FatalError, ItemError, ServiceError, classify, describe
from slurm_worker.execution.context import Context, HandlerResources
from slurm_worker.execution.flight_recorder import Recorder
from slurm_worker.execution.handler import RAISED, Handler
from slurm_worker.execution.throttle import TokenThrottle
from slurm_worker.protocol.job_config import JobConfig, WorkerConfig
from slurm_worker.protocol.ports import ITEM_FAILED, Clock
from slurm_worker.protocol.slices import TaskItems
from slurm_worker.rate_limits.limiter import MOST_RETRY_AFTER_S, Stopped
from slurm_worker.results.journal import Journal, Outcome
from slurm_worker.results.parts import ToLines, error_outcome, ok_outcome, to_lines

#: Seconds between two checks whether to stop, each with a write of what is journaled.
CHECK_S = 0.05
_PAUSE_CHECK_S = 0.5
#: These end the task, not the item: the handler asks for it, or a service of ours failed.
NOT_THE_ITEM = (FatalError, ServiceError)


class ItemTimeout(ItemError):
    """The item took longer than `worker.item_timeout`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(ErrorClass.TIMEOUT, f"not done after {seconds:g} s; see item_timeout")


@dataclass(frozen=True, slots=True)
class Calls:
    """What all ways of calling share."""

    handler: Handler
    resources: HandlerResources
    job: JobConfig
    stopping: Callable[[], bool]  #: true once no more items may start
    clock: Clock
    rng: random.Random  #: jitter
    recorder: Recorder  #: keeps which item runs, for the supervisor
    to_lines: ToLines = to_lines  #: turns a result into lines, or raises an `ItemError`
    #: Where in its code the handler has failed so far.
    _places: set[str] = field(default_factory=set, init=False)

    @property
    def config(self) -> WorkerConfig:
        """Concurrency, tries, backoff, timeout."""
        return self.job.worker

    @property
    def throttle(self) -> TokenThrottle:
        """The rate limits."""
        return self.resources.throttle

    def again_in(self, error: BaseException, tries: int) -> float | None:
        """Seconds to wait before another try after so many tries; None for no other try."""
        error_class = classify(error, self.job.rules)
        retry_after = errors.retry_after_of(error)
        if error_class is ErrorClass.RATE_LIMITED:
            self.throttle.penalize(retry_after)
        if error_class in errors.TRANSIENT and tries < self.config.tries and not self.stopping():
            # Full jitter, after "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
            ceiling = min(self.config.max_backoff_s, self.config.backoff_s * 2 ** (tries - 1))
            least = min(retry_after or 0.0, MOST_RETRY_AFTER_S)
            return max(least, self.rng.uniform(0, ceiling))
        return None

    def pauses(self, seconds: float) -> Iterator[float]:
        """The sleeps of a wait before another try; fewer where the worker stops before the end."""
        left = seconds
        while left > 0 and not self.stopping():
            self.recorder.waits(self.clock.boot_time())
            yield min(left, _PAUSE_CHECK_S)
            left -= _PAUSE_CHECK_S

    def pause(self, seconds: float) -> None:
        """Wait before another try; see `pauses`."""
        for pause_s in self.pauses(seconds):
            self.clock.sleep(pause_s)

    def failed(self, position: int, items: TaskItems, error: BaseException, tries: int) -> Outcome:
        """The outcome of an item that is not tried again here; it holds the item as planned.

        A handler's bug is logged with its place; the first at each place with its traceback.
        """
        error_class, message = classify(error, self.job.rules), describe(error)
        key, item, now = items.keys[position], items.text(position), self.clock.now()
        details: dict[str, object] = {"item": key, "error_class": error_class.value}
        details["error"] = message
        bug = error_class is ErrorClass.HANDLER_BUG
        place = errors.place_of(error, self.handler.folder) if bug else ""
        if place:
            details["place"] = place
            if place not in self._places:
                self._places.add(place)
                details["exc_info"] = error
        self.resources.logger.warning(ITEM_FAILED, **details)
        return error_outcome(
            position, key, error_class, message, place=place, tries=tries, at=now, item=item
        )


class Runner(ABC):
    """One way of calling the handler."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    @abstractmethod
    def run(self, items: TaskItems, todo: Sequence[int], attempt: int, journal: Journal) -> None:
        """Run the items at the positions `todo`; journal the outcome of each.

        Each call of the handler gets its own copies of its items. Returns early when the
        worker is stopping.

        Raises:
            FatalError: if the handler raised one.
            ServiceError: if a service of ours can't be reached.
        """

    def close(self) -> None:  # noqa: B027  most have nothing to end
        """End the threads or the event loop, if there are any."""


def run_item(
    calls: Calls,
    position: int,
    items: TaskItems,
    attempt: int,
    handle: Callable[..., Any],
    failed: BaseException | None = None,
) -> Outcome | None:
    """Call the handler for one item until there is an outcome; None if the worker stops.

    A further try begins only after the error of the last one was handled. Otherwise Python
    would make that error the context of the new one, which would be classified by it.
    `handle` is called for each try; `failed` is the error of a first try that the caller made.
    Raises what `Runner.run` does.
    """
    key = items.keys[position]
    tries, error = 0, failed
    while True:
        if error is not None:
            tries += 1
            if (wait_s := calls.again_in(error, tries)) is None:
                return calls.failed(position, items, error, tries)
            calls.pause(wait_s)
            if calls.stopping():
                return None
        try:
            result = handle(items.take(position), Context(calls.resources, key, attempt))
            return ok_outcome(position, key, result, calls.to_lines)
        except Stopped:
            return None
        except NOT_THE_ITEM:
            raise
        except RAISED as raised:
            error = raised

"""The items of one task: concurrency, in-worker retries, pacing.

Calls the handler for each item that has no outcome in the journal yet. Outcomes are
journaled by the calling thread; the handler runs in that same thread, or in a pool
where the worker's concurrency is above one. Makes no AWS request but for rate limits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from slurm_worker.config import WorkerConfig
from slurm_worker.errors import (
    TRANSIENT,
    ErrorClass,
    FatalError,
    classify,
    describe,
    retry_after_of,
)
from slurm_worker.handlers import Context, Handle
from slurm_worker.journal import Journal, Outcome
from slurm_worker.limits import RateLimiter, Stopped
from slurm_worker.parts import error_outcome, ok_outcome
from slurm_worker.ports import Clock


@dataclass(frozen=True, slots=True)
class ItemCall:
    """One item of a task."""

    position: int
    key: str
    item: dict[str, Any]


class Runner:
    """Runs items through a handler.

    Args:
        handle: the user's function.
        context: of the worker; each item gets its own.
        config: concurrency, tries, backoff.
        limiters: told when the server answers 429.
        stopping: true once the worker shall take no more items.
        clock: for backoff.
        rng: jitter.
    """

    def __init__(
        self,
        handle: Handle,
        context: Context,
        config: WorkerConfig,
        limiters: dict[str, RateLimiter],
        stopping: Callable[[], bool],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._handle = handle
        self._context = context
        self._config = config
        self._limiters = limiters
        self._stopping = stopping
        self._clock = clock
        self._rng = rng
        self._pool: ThreadPoolExecutor | None = None
        if config.concurrency > 1:
            self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="item")

    def run(self, items: list[tuple[str, dict[str, Any]]], attempt: int, journal: Journal) -> bool:
        """Run what the journal lacks; True when every item has an outcome.

        False means that the worker is stopping.

        Raises:
            FatalError: if the handler raised one.
        """
        have = journal.positions()
        calls = (
            ItemCall(position, key, item)
            for position, (key, item) in enumerate(items)
            if position not in have
        )
        for outcome in self._outcomes(calls, attempt):
            journal.add(outcome)
        journal.flush()
        return journal.ok + journal.failed == len(items)

    def close(self) -> None:
        """End the pool's threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _outcomes(self, calls: Iterator[ItemCall], attempt: int) -> Iterator[Outcome]:
        if self._pool is None:
            for call in calls:
                if self._stopping():
                    return
                outcome = self._run_item(call, attempt)
                if outcome is None:
                    return
                yield outcome
            return
        running: set[Future[Outcome | None]] = set()
        for call in calls:
            if self._stopping():
                break
            running.add(self._pool.submit(self._run_item, call, attempt))
            if len(running) >= self._config.concurrency:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from _results(done)
        yield from _results(wait(running).done)

    def _run_item(self, call: ItemCall, attempt: int) -> Outcome | None:
        """The item's outcome; None if the worker stopped before there was one."""
        context = self._context.for_item(call.key, attempt)
        tries = 0
        while True:
            tries += 1
            try:
                context.take_token(None)
                return ok_outcome(call.position, call.key, self._handle(call.item, context))
            except (Stopped, FatalError) as stop:
                if isinstance(stop, FatalError):
                    raise
                return None
            # User code raises anything; a handler that calls sys.exit() has a bug, not a say.
            except (Exception, SystemExit) as error:
                outcome = self._failure(call, error, tries)
            if outcome is not None:
                return outcome
            if self._stopping():
                return None

    def _failure(self, call: ItemCall, error: BaseException, tries: int) -> Outcome | None:
        """The outcome of a failure, or None after a wait for another try."""
        error_class = classify(error)
        retry_after = retry_after_of(error)
        if error_class is ErrorClass.RATE_LIMITED:
            for limiter in self._limiters.values():
                limiter.penalize(retry_after)
        if error_class in TRANSIENT and tries < self._config.tries:
            # Full jitter, after "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
            ceiling = min(self._config.max_backoff_s, self._config.backoff_s * 2 ** (tries - 1))
            self._clock.sleep(max(retry_after or 0.0, self._rng.uniform(0, ceiling)))
            return None
        self._context.logger.info(
            "item failed",
            extra={"item": call.key, "error_class": error_class.value, "error": describe(error)},
        )
        return error_outcome(
            call.position,
            call.key,
            error_class,
            describe(error),
            tries=tries,
            at=self._clock.now(),
            item=call.item,
        )


def _results(done: set[Future[Outcome | None]]) -> Iterator[Outcome]:
    for future in done:
        outcome = future.result()
        if outcome is not None:
            yield outcome

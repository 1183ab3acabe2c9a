"""Coroutine handlers: many calls at a time in one event loop.

The loop runs in the calling thread for the length of one task. A wait for a rate limit does
not block the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial

from slurm_worker.errors import ErrorClass, ItemError, describe
from slurm_worker.execution.calls import CHECK_S, NOT_THE_ITEM, Calls, ItemTimeout, Runner
from slurm_worker.execution.context import Context
from slurm_worker.execution.flight_recorder import SEVERAL
from slurm_worker.execution.handler import RAISED
from slurm_worker.protocol.slices import TaskItems
from slurm_worker.rate_limits.limiter import Stopped
from slurm_worker.results.journal import Journal, Outcome
from slurm_worker.results.parts import ok_outcome


class AsyncRunner(Runner):
    """Runs an ``async def`` handler; at most `concurrency` calls at a time."""

    def __init__(self, calls: Calls, concurrency: int) -> None:
        super().__init__(calls)
        self._concurrency = concurrency
        self._loop = asyncio.new_event_loop()

    def run(self, items: TaskItems, todo: Sequence[int], attempt: int, journal: Journal) -> None:
        """See `Runner.run`."""
        self._loop.run_until_complete(self._run(items, iter(todo), attempt, journal))

    def close(self) -> None:
        """See `Runner.close`."""
        self._loop.close()

    async def _run(
        self, items: TaskItems, todo: Iterator[int], attempt: int, journal: Journal
    ) -> None:
        lane = partial(self._lane, items, todo, attempt, journal)
        lanes = [asyncio.create_task(lane()) for _ in range(self._concurrency)]
        watch = asyncio.create_task(self._watch(lanes, journal))
        try:
            await asyncio.gather(*lanes)
        except asyncio.CancelledError:
            pass  # `_watch` cancels the calls when the worker stops; none of them has an outcome
        finally:
            watch.cancel()
            for running in lanes:
                running.cancel()
            await asyncio.gather(*lanes, watch, return_exceptions=True)

    async def _watch(self, lanes: list[asyncio.Task[None]], journal: Journal) -> None:
        while not self._calls.stopping():
            await asyncio.sleep(CHECK_S)
            journal.flush()
        for lane in lanes:
            lane.cancel()

    async def _lane(
        self, items: TaskItems, todo: Iterator[int], attempt: int, journal: Journal
    ) -> None:
        """Run one item after the other until none is left."""
        calls = self._calls
        for position in todo:
            only = position if self._concurrency == 1 else SEVERAL
            calls.recorder.items(only, self._concurrency, calls.clock.boot_time())
            outcome = await self._item(position, items, attempt)
            if outcome is None:
                return
            journal.add(outcome)

    async def _item(self, position: int, items: TaskItems, attempt: int) -> Outcome | None:
        calls = self._calls
        tries = 0
        while True:
            tries += 1
            try:
                if not calls.throttle.unlimited:
                    await calls.throttle.acquire_async(None)
                return await self._timed(position, items, attempt)
            except Stopped:
                return None
            except NOT_THE_ITEM:
                raise
            except RAISED as error:
                if (wait_s := calls.again_in(error, tries)) is None:
                    return calls.failed(position, items, error, tries)
            for seconds in calls.pauses(wait_s):
                await asyncio.sleep(seconds)
            if calls.stopping():
                return None

    async def _timed(self, position: int, items: TaskItems, attempt: int) -> Outcome:
        timeout_s = self._calls.config.item_timeout_s
        # A task of its own: a call that the handler's code cancels is not a request to stop.
        task = asyncio.ensure_future(self._call(position, items, attempt))
        try:
            done, _ = await asyncio.wait({task}, timeout=timeout_s or None)
            if not done:
                raise ItemTimeout(timeout_s)
            if task.cancelled():
                raise ItemError(ErrorClass.HANDLER_BUG, "the handler's coroutine was cancelled")
            return task.result()
        finally:
            # Also where this lane is cancelled: `wait` leaves the call running.
            task.cancel()

    async def _call(self, position: int, items: TaskItems, attempt: int) -> Outcome:
        """Call the handler, and encode its result before any other call continues.

        Handlers may return what they share between calls, such as a row that they fill again.
        """
        calls, key = self._calls, items.keys[position]
        context = Context(calls.resources, key, attempt)
        try:
            result = await calls.handler.handle(items.take(position), context)
        except SystemExit as error:
            # asyncio would have it end the loop, and with it the process.
            raise ItemError(ErrorClass.HANDLER_BUG, describe(error)) from error
        return ok_outcome(position, key, result, calls.to_lines)

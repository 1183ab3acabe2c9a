"""The items of one task: one after the other, or in threads; and the choice between runners."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from types import FrameType
from typing import Any

from slurm_worker.execution.async_runner import AsyncRunner
from slurm_worker.execution.batch_runner import BatchRunner
from slurm_worker.execution.calls import CHECK_S, NOT_THE_ITEM, Calls, ItemTimeout, Runner, run_item
from slurm_worker.execution.context import Context
from slurm_worker.execution.flight_recorder import SEVERAL
from slurm_worker.execution.handler import RAISED, HandlerKind
from slurm_worker.protocol.slices import TaskItems
from slurm_worker.rate_limits.limiter import Stopped
from slurm_worker.results.journal import Journal, Outcome


def make_runner(calls: Calls, *, isolated: bool = False) -> Runner:
    """The runner for the handler's kind; `isolated`, it runs one item at a time.

    Then a crash can be traced to its item.
    """
    if calls.handler.kind is HandlerKind.ASYNC:
        return AsyncRunner(calls, 1 if isolated else calls.config.concurrency)
    if calls.handler.kind is HandlerKind.BATCH:
        return BatchRunner(calls, 1 if isolated else calls.handler.batch_size)
    if calls.config.concurrency > 1 and not isolated:
        return ThreadRunner(calls)
    return SerialRunner(calls)


class SerialRunner(Runner):
    """One item after the other, in the calling thread."""

    def run(self, items: TaskItems, todo: Sequence[int], attempt: int, journal: Journal) -> None:
        """See `Runner.run`."""
        calls = self._calls
        handle, resources, to_lines = calls.handler.handle, calls.resources, calls.to_lines
        record, add_ok, boot_time = calls.recorder.items, journal.add_ok, calls.clock.boot_time
        keys, take = items.keys, items.take
        check_at = 0.0
        throttled = not calls.throttle.unlimited
        timeout_s = calls.config.item_timeout_s
        if throttled or timeout_s:
            handle = self._wrapped(handle, timeout_s)
        for position in todo:
            now = boot_time()
            if now >= check_at:
                # Not for each item: a check takes as long as a small item does.
                if calls.stopping():
                    return
                journal.write()
                check_at = now + CHECK_S
            record(position, 1, now)
            key = keys[position]
            try:
                rows, lines = to_lines(
                    key, handle(take(position), Context(resources, key, attempt))
                )
            except Stopped:
                return
            except NOT_THE_ITEM:
                raise
            except RAISED as error:
                failed = error
            else:
                add_ok(position, rows, lines)
                continue
            outcome = run_item(calls, position, items, attempt, handle, failed)
            if outcome is None:
                return
            journal.add(outcome)

    def _wrapped(self, handle: Callable[..., Any], timeout_s: float) -> Callable[..., Any]:
        throttle = self._calls.throttle

        def call(item: dict[str, Any], context: Context) -> object:
            throttle.acquire(None)
            with _alarm(timeout_s):
                return handle(item, context)

        return call


@dataclass(slots=True)
class _Running:
    """An item in a thread: its position, and since when its handler runs (boot time).

    Before that, and between two tries, it waits for a token or for its turn: that time does not
    count against its timeout.
    """

    position: int
    since: float = math.inf


class ThreadRunner(Runner):
    """Several items at a time, for handlers that wait for something else.

    A thread can't be made to end: an item that overruns its time is given up, its thread
    is abandoned, and other threads take the items that follow.
    """

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls)
        self._pool = self._new_pool()

    def run(self, items: TaskItems, todo: Sequence[int], attempt: int, journal: Journal) -> None:
        """See `Runner.run`."""
        calls = self._calls
        running: dict[Future[Outcome | None], _Running] = {}
        left = iter(todo)
        more = True
        check_at = 0.0
        while more or running:
            while more and len(running) < calls.config.concurrency:
                position = next(left, None)
                if position is None or calls.stopping():
                    more = False
                    break
                # With the ids that are on this thread's log lines.
                call = copy_context().run
                mine = _Running(position)
                future = self._pool.submit(call, self._call, mine, items, attempt)
                running[future] = mine
            calls.recorder.items(SEVERAL, len(running), calls.clock.boot_time())
            done, _ = wait(running, timeout=self._due_in_s(running), return_when=FIRST_COMPLETED)
            for future in done:
                del running[future]
                outcome = future.result()
                if outcome is not None:
                    journal.add(outcome)
            if (now := calls.clock.boot_time()) >= check_at:
                journal.flush()
                check_at = now + CHECK_S
            for outcome in self._overdue(running, items):
                journal.add(outcome)

    def close(self) -> None:
        """See `Runner.close`."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _call(self, mine: _Running, items: TaskItems, attempt: int) -> Outcome | None:
        calls = self._calls

        def handle(value: dict[str, Any], context: Context) -> object:
            calls.throttle.acquire(None)
            mine.since = calls.clock.boot_time()
            try:
                return calls.handler.handle(value, context)
            finally:
                mine.since = math.inf

        return run_item(calls, mine.position, items, attempt, handle)

    def _due_in_s(self, running: dict[Future[Outcome | None], _Running]) -> float | None:
        timeout_s = self._calls.config.item_timeout_s
        if not timeout_s or not running:
            return None
        now = self._calls.clock.boot_time()
        # One whose handler begins in a moment is due no sooner than one that begins now.
        oldest = min(now, *(item.since for item in running.values()))
        return max(0.0, oldest + timeout_s - now) + 0.01

    def _overdue(
        self, running: dict[Future[Outcome | None], _Running], items: TaskItems
    ) -> Iterator[Outcome]:
        timeout_s = self._calls.config.item_timeout_s
        if not timeout_s:
            return
        now = self._calls.clock.boot_time()
        late = [future for future, item in running.items() if now - item.since > timeout_s]
        for future in late:
            position = running.pop(future).position
            if not future.cancel():
                # The thread is lost; its pool is abandoned, with the rest of its work.
                self._pool = self._new_pool()
            yield self._calls.failed(position, items, ItemTimeout(timeout_s), 1)

    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._calls.config.concurrency, thread_name_prefix="item")


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `ItemTimeout` in this thread when the time is over; for the main thread only."""
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise ItemTimeout(seconds)

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

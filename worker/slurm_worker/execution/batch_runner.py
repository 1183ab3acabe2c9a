"""Batch handlers: one call for many items.

A call that raises says nothing about its single items. After an error that may pass, the whole
batch is tried again; otherwise it is halved until each item at fault is alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from slurm_worker.errors import ErrorClass, ItemError
from slurm_worker.execution.calls import NOT_THE_ITEM, Calls, Runner
from slurm_worker.execution.context import Context
from slurm_worker.execution.flight_recorder import SEVERAL
from slurm_worker.execution.handler import RAISED
from slurm_worker.protocol.slices import TaskItems
from slurm_worker.rate_limits.limiter import Stopped
from slurm_worker.results.journal import Journal, Outcome
from slurm_worker.results.parts import ok_outcome


class BatchRunner(Runner):
    """Runs a ``@batch`` handler on up to `size` items at a time."""

    def __init__(self, calls: Calls, size: int) -> None:
        super().__init__(calls)
        self._size = size

    def run(self, items: TaskItems, todo: Sequence[int], attempt: int, journal: Journal) -> None:
        """See `Runner.run`."""
        for first in range(0, len(todo), self._size):
            positions = todo[first : first + self._size]
            try:
                for outcome in self._batch(items, positions, attempt):
                    journal.add(outcome)
                journal.flush()
            except Stopped:
                return

    def _batch(self, items: TaskItems, positions: Sequence[int], attempt: int) -> Iterator[Outcome]:
        """The outcome of each item of one batch; raises `Stopped` if the worker stops before."""
        calls = self._calls
        tries = 0
        while True:
            if calls.stopping():
                raise Stopped
            tries += 1
            only = positions[0] if len(positions) == 1 else SEVERAL
            calls.recorder.items(only, len(positions), calls.clock.boot_time())
            try:
                results = self._call(items, positions, attempt)
            except (*NOT_THE_ITEM, Stopped):
                raise
            except RAISED as error:
                wait_s = calls.again_in(error, tries)
                if wait_s is not None:
                    calls.pause(wait_s)
                    continue
                if len(positions) == 1:
                    yield calls.failed(positions[0], items, error, tries)
                    return
                break
            for position, result in zip(positions, results, strict=True):
                yield self._outcome(position, items, result)
            return
        # Only after the error was handled: it would be the context of what the halves raise.
        middle = len(positions) // 2
        yield from self._batch(items, positions[:middle], attempt)
        yield from self._batch(items, positions[middle:], attempt)

    def _call(self, items: TaskItems, positions: Sequence[int], attempt: int) -> Sequence[object]:
        calls = self._calls
        for _ in positions:
            if not calls.throttle.unlimited:
                calls.throttle.acquire(None)
        batch = [items.take(position) for position in positions]
        given = list(batch)
        context = Context(calls.resources, items.keys[positions[0]], attempt)
        results: Sequence[object] = calls.handler.handle(given, context)
        found = len(results) if isinstance(results, list | tuple) else type(results).__name__
        if found != len(positions):
            raise ItemError(
                ErrorClass.HANDLER_BUG,
                f"the batch handler returned {found} for {len(positions)} items; return a list "
                "with one result per item, in order",
            )
        if _reordered(batch, given):
            raise ItemError(
                ErrorClass.HANDLER_BUG,
                "the batch handler changed the order of its items, so which result belongs to "
                "which item is not certain; sort a copy: sorted(items)",
            )
        return results

    def _outcome(self, position: int, items: TaskItems, result: object) -> Outcome:
        error: BaseException
        try:
            if not isinstance(result, BaseException):
                return ok_outcome(position, items.keys[position], result, self._calls.to_lines)
            error = result
        except RAISED as refused:
            error = refused
        if isinstance(error, (*NOT_THE_ITEM, Stopped)):
            raise error
        tries = self._calls.config.tries
        again_s = self._calls.again_in(error, tries)
        assert again_s is None, "the others of the batch have their results"
        return self._calls.failed(position, items, error, tries)


def _reordered(batch: list[dict[str, Any]], given: list[dict[str, Any]]) -> bool:
    """Whether the handler left the items that are still in its list in another order."""
    places = {id(item): place for place, item in enumerate(batch)}
    left = [places[id(item)] for item in given if id(item) in places]
    return any(later < earlier for earlier, later in pairwise(left))

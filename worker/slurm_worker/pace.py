"""All rate limits of a job, as one worker keeps them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from slurm_worker.limits import RateLimiter, Stopped, wait_until
from slurm_worker.ports import Clock
from slurm_worker.recorder import Recorder

_LOOK_S = 0.5


class Pace:
    """Takes tokens of several limits.

    A token of one limit may be over by the time that another's has come. So all are taken,
    and all are looked at again right before sending; one that is over is thrown away and
    taken anew, which wastes it and never oversteps.

    Args:
        limiters: one per limit.
        clock: AWS time.
        stopping: true once the worker shall take no more items.
        recorder: told while items wait for tokens, which may be until tomorrow.
    """

    def __init__(
        self,
        limiters: Sequence[RateLimiter],
        clock: Clock,
        stopping: Callable[[], bool],
        recorder: Recorder | None = None,
    ) -> None:
        self._limiters = {limiter.config.name: limiter for limiter in limiters}
        self._clock = clock
        self._stopping = stopping
        self._recorder = recorder or Recorder()

    @property
    def unlimited(self) -> bool:
        """Whether there is no limit."""
        return not self._limiters

    def acquire(self, name: str | None) -> None:
        """Wait for a token of the limit `name`, or of each.

        Raises:
            Stopped: if the worker is asked to stop meanwhile.
            KeyError: if there is no such limit.
            ServiceError: if the table can't be reached.
        """
        slots: dict[RateLimiter, float] = {}
        while missing := self._missing(slots, name):
            for limiter in missing:
                slots[limiter] = limiter.slot(self._waiting)
            wait_until(max(slots.values()), self._clock, self._waiting)

    async def acquire_async(self, name: str | None) -> None:
        """As `acquire`, without holding the event loop up."""
        slots: dict[RateLimiter, float] = {}
        while missing := self._missing(slots, name):
            for limiter in missing:
                while (slot := limiter.poll()) is None:
                    await self._sleep(await asyncio.to_thread(limiter.reserve))
                slots[limiter] = slot
            await self._sleep(max(slots.values()) - self._clock.now())

    def penalize(self, retry_after_s: float | None) -> None:
        """The server said 429: slow every limit down."""
        for limiter in self._limiters.values():
            limiter.penalize(retry_after_s)

    def numbers(self) -> dict[str, object]:
        """What the limits were used for, for the log."""
        used = {name: each.numbers.to_dict() for name, each in self._limiters.items()}
        return {"limits": used} if used else {}

    def _missing(self, slots: dict[RateLimiter, float], name: str | None) -> list[RateLimiter]:
        """The limits of which there is no token that may be sent now."""
        chosen = list(self._limiters.values()) if name is None else [self._limiters[name]]
        return [each for each in chosen if each not in slots or not each.usable(slots[each])]

    def _waiting(self) -> bool:
        """What is asked again and again while a token is waited for: whether to stop."""
        self._recorder.waits(self._clock.boot_time())
        return self._stopping()

    async def _sleep(self, seconds: float) -> None:
        until = self._clock.boot_time() + seconds
        while (left := until - self._clock.boot_time()) > 0:
            if self._waiting():
                raise Stopped
            await asyncio.sleep(min(left, _LOOK_S))

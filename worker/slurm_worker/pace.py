"""All rate limits of a job, as one worker keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from slurm_worker.limits import RateLimiter


class Pace:
    """Takes tokens of several limits.

    Args:
        limiters: one per limit.
        stopping: true once the worker shall take no more items.
    """

    def __init__(self, limiters: Sequence[RateLimiter], stopping: Callable[[], bool]) -> None:
        self._limiters = {limiter.config.name: limiter for limiter in limiters}
        self._stopping = stopping

    @property
    def unlimited(self) -> bool:
        """Whether there is no limit."""
        return not self._limiters

    def acquire(self, name: str | None) -> None:
        """Wait for a token of the limit `name`, or of each.

        Raises:
            Stopped: if the worker is asked to stop meanwhile.
        """
        for limiter in self._chosen(name):
            limiter.acquire(self._stopping)

    async def acquire_async(self, name: str | None) -> None:
        """As `acquire`, without holding the event loop up."""
        raise NotImplementedError

    def penalize(self, retry_after_s: float | None) -> None:
        """The server said 429: slow every limit down."""
        for limiter in self._limiters.values():
            limiter.penalize(retry_after_s)

    def numbers(self) -> dict[str, object]:
        """What the limits were used for, for the log."""
        return {}

    def _chosen(self, name: str | None) -> Sequence[RateLimiter]:
        if name is None:
            return list(self._limiters.values())
        return [self._limiters[name]]

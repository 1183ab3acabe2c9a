"""All rate limits of a job, as one worker keeps them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from slurm_worker.errors import ServiceError
from slurm_worker.execution.flight_recorder import Recorder
from slurm_worker.protocol.ports import Clock
from slurm_worker.rate_limits.limiter import RateLimiter, Stopped, Token, wait_until

_LOOK_S = 0.5


class TokenThrottle:
    """Takes tokens of several limits.

    A token of one limit may be over by the time that another's has come. So all are taken,
    and all are looked at again right before sending; one that is over is thrown away and
    taken anew, which wastes its slot and never oversteps.

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
        tokens: dict[RateLimiter, Token] = {}
        with _given_back(tokens):
            while missing := self._missing(tokens, name):
                for limiter in missing:
                    wait_until(_time_for(limiter, tokens), self._clock, self._waiting)
                    tokens[limiter] = limiter.token(self._waiting)
                wait_until(_latest(tokens), self._clock, self._waiting)

    async def acquire_async(self, name: str | None) -> None:
        """As `acquire`, without holding the event loop up."""
        tokens: dict[RateLimiter, Token] = {}
        with _given_back(tokens):
            while missing := self._missing(tokens, name):
                for limiter in missing:
                    await self._sleep(_time_for(limiter, tokens) - self._clock.now())
                    while (token := limiter.poll()) is None:
                        await self._sleep(await asyncio.to_thread(limiter.reserve))
                    tokens[limiter] = token
                await self._sleep(_latest(tokens) - self._clock.now())

    def close(self) -> None:
        """No more tokens are taken: give back what is held of quotas."""
        for limiter in self._limiters.values():
            # What can't be given back is lost for the day, as in a crash.
            with suppress(ServiceError):
                limiter.close()

    def penalize(self, retry_after_s: float | None) -> None:
        """The server said 429: slow every limit down."""
        for limiter in self._limiters.values():
            limiter.penalize(retry_after_s)

    def numbers(self) -> dict[str, object]:
        """What the limits were used for, for the log."""
        used = {name: each.counts.to_dict() for name, each in self._limiters.items()}
        return {"limits": used} if used else {}

    def _missing(self, tokens: dict[RateLimiter, Token], name: str | None) -> list[RateLimiter]:
        """The limits of which there is no token that may be used now, the busiest first."""
        chosen = list(self._limiters.values()) if name is None else [self._limiters[name]]
        for limiter in list(tokens):
            if not limiter.usable(tokens[limiter]):
                limiter.discard(tokens.pop(limiter))
        missing = [each for each in chosen if each not in tokens]
        return sorted(missing, key=lambda each: each.queue_s, reverse=True)

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


def _latest(tokens: dict[RateLimiter, Token]) -> float:
    return max((token.at for token in tokens.values()), default=0.0)


def _time_for(limiter: RateLimiter, tokens: dict[RateLimiter, Token]) -> float:
    """When to ask a limit, so that its token comes when the others' may be used."""
    return _latest(tokens) - limiter.queue_s


@contextmanager
def _given_back(tokens: dict[RateLimiter, Token]) -> Iterator[None]:
    """What is here when the wait is broken off is for no call."""
    try:
        yield
    except BaseException:
        for limiter, token in tokens.items():
            limiter.discard(token)
        raise

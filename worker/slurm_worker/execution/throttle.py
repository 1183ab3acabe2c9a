"""All rate limits of a job, as one worker keeps them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict

from slurm_worker.errors import ServiceError
from slurm_worker.execution.flight_recorder import Recorder
from slurm_worker.protocol.ports import Clock
from slurm_worker.rate_limits.limiter import RateLimiter, Stopped, Token, wait_until

_CHECK_S = 0.5


class TokenThrottle:
    """Takes tokens of several limits, until `stopping` is true.

    A token of one limit may expire before that of another limit comes. So all are taken, and
    all are checked again right before sending. An expired one is discarded and taken again,
    which wastes its slot and never exceeds the limit. The `recorder` gets a mark while items wait
    for tokens, which may last until tomorrow.
    """

    def __init__(
        self,
        limiters: Sequence[RateLimiter],
        clock: Clock,
        stopping: Callable[[], bool],
        recorder: Recorder | None = None,
    ) -> None:
        self._limiters = {limiter.config.name: limiter for limiter in limiters}
        self._clock, self._stopping = clock, stopping
        self._recorder = recorder or Recorder()

    @property
    def unlimited(self) -> bool:
        """Whether there is no limit."""
        return not self._limiters

    def acquire(self, name: str | None) -> None:
        """Wait for a token of the limit `name`, or of each.

        Raises:
            Stopped: if the worker is asked to stop while it waits.
            KeyError: if there is no such limit.
            ServiceError: if the table can't be reached.
        """
        tokens: dict[RateLimiter, Token] = {}
        with _discarded(tokens):
            while missing := self._missing(tokens, name):
                for limiter in missing:
                    wait_until(_time_for(limiter, tokens), self._clock, self._waiting)
                    tokens[limiter] = limiter.token(self._waiting)
                wait_until(_latest(tokens), self._clock, self._waiting)

    async def acquire_async(self, name: str | None) -> None:
        """As `acquire`, without blocking the event loop."""
        tokens: dict[RateLimiter, Token] = {}
        with _discarded(tokens):
            while missing := self._missing(tokens, name):
                for limiter in missing:
                    await self._sleep(_time_for(limiter, tokens) - self._clock.now())
                    while (token := limiter.poll()) is None:
                        await self._sleep(await asyncio.to_thread(limiter.reserve))
                    tokens[limiter] = token
                await self._sleep(_latest(tokens) - self._clock.now())

    def close(self) -> None:
        """Take no more tokens; give back what is held of quotas."""
        for limiter in self._limiters.values():
            # What can't be given back is lost for the day, as after a crash.
            with suppress(ServiceError):
                limiter.close()

    def penalize(self, retry_after_s: float | None) -> None:
        """The server answered 429: slow every limit down."""
        for limiter in self._limiters.values():
            limiter.penalize(retry_after_s)

    def numbers(self) -> dict[str, object]:
        """What the limits were used for, for the log."""
        used = {name: asdict(limiter.counts) for name, limiter in self._limiters.items()}
        return {"limits": used} if used else {}

    def _missing(self, tokens: dict[RateLimiter, Token], name: str | None) -> list[RateLimiter]:
        """The limits without a token that may be used now, the busiest first."""
        chosen = list(self._limiters.values()) if name is None else [self._limiters[name]]
        for limiter in list(tokens):
            if not limiter.usable(tokens[limiter]):
                limiter.discard(tokens.pop(limiter))
        missing = [limiter for limiter in chosen if limiter not in tokens]
        return sorted(missing, key=lambda limiter: limiter.queue_s, reverse=True)

    def _waiting(self) -> bool:
        """Whether to stop, checked again and again during a wait for a token."""
        self._recorder.waits(self._clock.boot_time())
        return self._stopping()

    async def _sleep(self, seconds: float) -> None:
        until = self._clock.boot_time() + seconds
        while (left := until - self._clock.boot_time()) > 0:
            if self._waiting():
                raise Stopped
            await asyncio.sleep(min(left, _CHECK_S))


def _latest(tokens: dict[RateLimiter, Token]) -> float:
    return max((token.at for token in tokens.values()), default=0.0)


def _time_for(limiter: RateLimiter, tokens: dict[RateLimiter, Token]) -> float:
    """When to reserve of a limit, so that its token comes when the others may be used."""
    return _latest(tokens) - limiter.queue_s


@contextmanager
def _discarded(tokens: dict[RateLimiter, Token]) -> Iterator[None]:
    """Discard the tokens where the wait is broken off: they serve no call."""
    try:
        yield
    except BaseException:
        for limiter, token in tokens.items():
            limiter.discard(token)
        raise

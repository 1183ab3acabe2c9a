"""Two thousand workers and one rate limit, over the real limiter, in simulated time.

python -m benchmarks.limiter [--short] [--json]
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.claims import Hub, HubClock, show
from slurm_worker.execution.throttle import TokenThrottle
from slurm_worker.protocol.job_config import LimitConfig
from slurm_worker.protocol.ports import Applied, Refused, Row, Statement
from slurm_worker.rate_limits.limiter import RateLimiter, Stopped
from slurm_worker.rate_limits.slices import bound
from slurm_worker.testing import MemoryRows

RATE = 100.0
LATENCY_S = 0.008
SKEW_S = 0.05
#: A request to the limited API.
CALL_S = 0.2


class LateRows:
    """The table, answering after a while; counts writes."""

    def __init__(self, hub: Hub, rng: random.Random) -> None:
        self._rows, self._hub, self._rng = MemoryRows(), hub, rng
        self.writes = 0

    def get(self, pk: str, sk: str, *, consistent: bool = True) -> Row | None:
        self._hub.sleep(self._rng.uniform(0.5, 1.5) * LATENCY_S)
        return self._rows.get(pk, sk, consistent=consistent)

    def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
        self._hub.sleep(self._rng.uniform(0.2, 0.8) * LATENCY_S)
        self.writes += 1
        result = self._rows.update(pk, sk, statement)
        self._hub.sleep(self._rng.uniform(0.2, 0.8) * LATENCY_S)
        return result

    def put_new(self, row: Row) -> Applied | Refused:
        self.writes += 1
        return self._rows.put_new(row)

    def query(self, *_: Any, **__: Any) -> Iterator[Row]:
        raise NotImplementedError

    def delete(self, pk: str, sk: str) -> None:
        raise NotImplementedError


class SkewedClock(HubClock):
    def __init__(self, hub: Hub, skew_s: float) -> None:
        super().__init__(hub)
        self._skew_s = skew_s

    def now(self) -> float:
        return super().now() + self._skew_s


def simulate(workers: int, seconds: float, seed: int = 1) -> dict[str, Any]:
    hub, rng = Hub(), random.Random(seed)
    rows = LateRows(hub, rng)
    config = LimitConfig("api", RATE, burst=1, send_window_s=1.0)
    sent: list[float] = []
    tokens = 0

    def over() -> bool:
        return hub.now > seconds

    def work(own: random.Random) -> None:
        nonlocal tokens
        clock = SkewedClock(hub, own.uniform(-SKEW_S, SKEW_S))
        limiter = RateLimiter(rows, config, workers, clock, own)
        tokens = limiter.tokens
        throttle = TokenThrottle([limiter], clock, over)
        try:
            while True:
                throttle.acquire(None)
                sent.append(hub.now)
                hub.sleep(CALL_S)
                if own.random() < 0.01:
                    hub.sleep(own.uniform(0, 30))  # paused, as by SIGSTOP
        except Stopped:
            return

    for _ in range(workers):
        own = random.Random(rng.random())
        hub.spawn(_bind(work, own), rng.uniform(0, workers / 500))
    hub.run()
    sent.sort()
    first = sent[0]
    used = len(sent) / (RATE * (seconds - first))
    found: dict[str, Any] = {
        "workers": workers,
        "used": round(used, 3),
        "writes_per_token": round(rows.writes / len(sent), 3),
    }
    for window in (1.0, 10.0):
        most = max(bisect_right(sent, t + window) - at for at, t in enumerate(sent))
        found[f"most_in_{window:g}_s"] = most
        found[f"bound_in_{window:g}_s"] = round(bound(RATE, 1, 1.0, SKEW_S, tokens, window), 1)
    return found


def _bind(function: Callable[[random.Random], None], own: random.Random) -> Callable[[], None]:
    return lambda: function(own)


def figures(*, short: bool) -> list[dict[str, Any]]:
    return [simulate(200, 20.0)] if short else [simulate(2_000, 300.0)]


if __name__ == "__main__":
    show(__doc__, lambda short: figures(short=short))

"""The state of a job's rate limits is shown, and a vendor's quota becomes a safe rate."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.status.rate_limits import rate_for, read_limits
from slurm_worker.errors import UserError
from slurm_worker.execution.throttle import TokenThrottle
from slurm_worker.protocol.job_config import LimitConfig
from slurm_worker.rate_limits.limiter import RateLimiter
from slurm_worker.rate_limits.slices import bound, slice_of
from tests.unit.coordinator.fakes import make_config, services


def test_a_limit_shows_its_use_and_its_cuts(tmp_path: Path) -> None:
    edges = services()
    config = make_config(tmp_path, limits={"api": {"rate": "10/s", "quota_per_day": 1000}})
    api.submit(edges, config, log=lambda _: None)
    (fresh,) = read_limits(edges, config.spec.id)
    assert (fresh.current_rate, fresh.used, fresh.ahead_s) == (10.0, 0, 0.0)
    limit = LimitConfig("api", rate=10.0, quota_per_day=1000)
    limiter = RateLimiter(edges.rows, limit, 1, edges.clock, random.Random(1))
    TokenThrottle([limiter], edges.clock, lambda: False).acquire(None)
    limiter.penalize(None)
    (state,) = read_limits(edges, config.spec.id)
    assert (state.rate, state.current_rate, state.cuts, state.used) == (10.0, 7.0, 1, 10)


@pytest.mark.parametrize("quota", ["600/min", "100/10s", "5000/h", "100000/d"])
def test_a_safe_rate_keeps_within_the_quota_and_uses_most_of_it(quota: str) -> None:
    found = rate_for(quota, workers=10)
    assert found.bound <= found.quota
    assert found.rate * found.window_s > 0.8 * found.quota


@pytest.mark.parametrize("quota", ["600/min", "100/10s", "5000/h", "100000/d", "40000/min"])
@pytest.mark.parametrize("workers", [1, 3, 10, 400])
def test_a_safe_rate_is_safe_for_that_many_workers_or_more(quota: str, workers: int) -> None:
    found = rate_for(quota, workers=workers)
    for more in (workers, 2 * workers, 10_000):
        reserved = slice_of(found.rate, more)
        assert bound(found.rate, 1, 1.0, 0.1, reserved, found.window_s) <= found.quota + 0.01


@pytest.mark.parametrize("quota", ["600", "600/week", "x/s", "5/0s"])
def test_a_text_that_is_not_a_quota_is_refused(quota: str) -> None:
    with pytest.raises(UserError, match="write 600/min"):
        rate_for(quota)

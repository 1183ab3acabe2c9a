"""Times that can't work together are refused; with those that are accepted a worker gets on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_worker.errors import UserError
from slurm_worker.node.heartbeat import HeldLease
from slurm_worker.node.worker import read_config
from slurm_worker.protocol.job_config import (
    HandlerConfig,
    JobConfig,
    LeaseConfig,
    LimitConfig,
    WorkerConfig,
    check_lifetime,
    check_times,
)
from slurm_worker.protocol.keys import JobId, TaskState
from slurm_worker.protocol.slices import Slice
from slurm_worker.protocol.tasks import Lease, TaskRow
from slurm_worker.testing import ManualClock

SHORT = LeaseConfig(ttl_s=10.0, heartbeat_s=2.0)
WORKER = WorkerConfig()
SECONDS = st.floats(0.5, 4000.0)


def refusal(lease: LeaseConfig, worker: WorkerConfig = WORKER, *limits: LimitConfig) -> str:
    with pytest.raises(UserError) as found:
        check_times(lease, worker, limits)
    return str(found.value)


def test_a_lease_with_a_ttl_that_is_too_short_is_refused_with_times_that_work() -> None:
    told = refusal(SHORT)
    assert "lease.ttl: 10s" in told
    assert "write lease.ttl: 20s, or lease.margin: 5s" in told
    check_times(replace(SHORT, ttl_s=20.0), WORKER, ())
    check_times(replace(SHORT, margin_s=5.0), WORKER, ())


@pytest.mark.parametrize(
    "lease",
    [
        LeaseConfig(),
        LeaseConfig(ttl_s=40.0, heartbeat_s=10.0),
        LeaseConfig(ttl_s=240.0, heartbeat_s=60.0),
        LeaseConfig(ttl_s=8.0, heartbeat_s=2.0, margin_s=1.0),
    ],
)
def test_leases_that_work_are_accepted(lease: LeaseConfig) -> None:
    check_times(lease, WORKER, ())


@given(ttl_s=SECONDS, heartbeat_s=SECONDS, margin_s=SECONDS)
def test_an_accepted_lease_survives_one_lost_heartbeat(
    ttl_s: float, heartbeat_s: float, margin_s: float
) -> None:
    config = LeaseConfig(ttl_s=ttl_s, heartbeat_s=heartbeat_s, margin_s=margin_s)
    try:
        check_times(config, WORKER, ())
    except UserError:
        return
    clock = ManualClock()
    row = TaskRow(0, 0, TaskState.LEASED, Slice(0, 0, 1, 1, ""))
    hold = HeldLease(Lease(row, "w"), config.ttl_s - config.margin_s, clock)
    clock.advance(2 * 1.1 * heartbeat_s)
    assert hold.trusted


@given(ttl_s=SECONDS, heartbeat_s=SECONDS, margin_s=SECONDS)
def test_the_times_that_a_refusal_names_are_accepted(
    ttl_s: float, heartbeat_s: float, margin_s: float
) -> None:
    # As somebody writes them.
    ttl_s, heartbeat_s, margin_s = (round(each, 1) for each in (ttl_s, heartbeat_s, margin_s))
    config = LeaseConfig(ttl_s=ttl_s, heartbeat_s=heartbeat_s, margin_s=margin_s)
    try:
        check_times(config, WORKER, ())
    except UserError as error:
        _, _, proposed = str(error).partition("; write ")
        for each in proposed.split(", or "):
            name, value = each.removeprefix("lease.").removesuffix("s").split(": ")
            check_times(replace(config, **{f"{name}_s": float(value)}), WORKER, ())


def test_an_item_timeout_must_be_less_than_the_stall_time() -> None:
    worker = WorkerConfig(item_timeout_s=7200.0)
    assert "write lease.stall: 14400s" in refusal(LeaseConfig(), worker)
    check_times(LeaseConfig(stall_s=14_400.0), worker, ())


def test_a_backoff_over_its_ceiling_is_refused() -> None:
    worker = WorkerConfig(backoff_s=60.0)
    assert "write worker.max_backoff: 60s or more" in refusal(LeaseConfig(), worker)


def test_a_send_window_shorter_than_a_request_is_refused() -> None:
    limit = LimitConfig("api", 1.0, send_window_s=0.001)
    assert "limits.api.send_window" in refusal(LeaseConfig(), WORKER, limit)


def test_a_heartbeat_interval_that_is_too_short_is_refused() -> None:
    assert "lease.heartbeat: 0.001s" in refusal(LeaseConfig(heartbeat_s=0.001))


def test_an_item_timeout_or_rate_beyond_the_workers_time_is_refused() -> None:
    with pytest.raises(UserError, match=r"worker\.item_timeout: 3000s .* raise slurm\.time"):
        check_lifetime(1680.0, WorkerConfig(item_timeout_s=3000.0), ())
    with pytest.raises(UserError, match=r"limits\.api\.rate: one call in 3600s"):
        check_lifetime(1680.0, WORKER, [LimitConfig("api", 1 / 3600)])
    check_lifetime(1680.0, WORKER, [LimitConfig("api", 1 / 60)])


def test_a_worker_refuses_times_of_an_earlier_release_that_cannot_work() -> None:
    config = JobConfig(
        JobId("j"), "t", "b", "lab", 8, HandlerConfig("h:handle"), lease=SHORT
    ).to_json({})
    with pytest.raises(UserError, match=r"lease\.ttl: 10s is too short"):
        read_config(config, "key")

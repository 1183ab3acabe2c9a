"""Which times of a job can work together: one place for whoever reads a configuration.

The coordinator asks before anything is planned; a worker asks again, since the configuration
that it reads may be of an earlier release. Names are those of the job's YAML. Makes no requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from slurm_worker.errors import UserError
from slurm_worker.protocol.job_config import LeaseConfig, LimitConfig, WorkerConfig

#: Heartbeats within the time for which an answer is trusted: two, each up to a tenth late, and
#: the requests. So one that is lost loses no lease.
_BEATS = 2.5
#: Clocks differ by less (`backends/clock.py`); less is not proposed.
_LEAST_MARGIN_S = 1.0
#: A heartbeat is a write, and takes some ten milliseconds.
_LEAST_HEARTBEAT_S = 0.5
#: A token is used by whom it takes some ten milliseconds to get.
_LEAST_SEND_WINDOW_S = 0.1


def check_times(lease: LeaseConfig, worker: WorkerConfig, limits: Sequence[LimitConfig]) -> None:
    """Refuse times with which no item, or not every item, could be done.

    Raises:
        UserError: naming the field, its value, and values that work.
    """
    _check_lease(lease)
    _check_worker(worker, lease)
    for limit in limits:
        if limit.send_window_s < _LEAST_SEND_WINDOW_S:
            raise UserError(
                f"limits.{limit.name}.send_window: {_s(limit.send_window_s)} is over before a "
                f"token has come from the table; write {_s(_LEAST_SEND_WINDOW_S)} or more"
            )


def check_lifetime(seconds: float, worker: WorkerConfig, limits: Sequence[LimitConfig]) -> None:
    """Refuse what can't be done in the time that a worker has.

    Args:
        seconds: ``slurm.time`` less ``slurm.grace``: from a worker's start until it is asked
            to stop.
        worker: how it runs items.
        limits: the job's rate limits.

    Raises:
        UserError: naming the field, its value, and what to change.
    """
    if worker.item_timeout_s >= seconds:
        raise UserError(
            f"worker.item_timeout: {_s(worker.item_timeout_s)} is not less than the {_s(seconds)} "
            "that a worker has (slurm.time less slurm.grace); write worker.item_timeout: "
            f"{_down(0.9 * seconds)} or less, or raise slurm.time"
        )
    for limit in limits:
        if 1 / limit.rate >= seconds:
            raise UserError(
                f"limits.{limit.name}.rate: one call in {_s(1 / limit.rate)} is not more than one "
                f"in the {_s(seconds)} that a worker has (slurm.time less slurm.grace); raise "
                "slurm.time"
            )


def _check_lease(lease: LeaseConfig) -> None:
    ttl_s, beat_s, margin_s = lease.ttl_s, lease.heartbeat_s, lease.margin_s
    if beat_s < _LEAST_HEARTBEAT_S:
        raise UserError(
            f"lease.heartbeat: {_s(beat_s)} is too often, as each is a write to the table; write "
            f"{_s(_LEAST_HEARTBEAT_S)} or more"
        )
    least_s = margin_s + _BEATS * beat_s
    # The sum of what was written in decimal may be a hair above.
    if ttl_s >= least_s - 1e-9 * ttl_s:
        return
    longest_s = max(0.0, ttl_s - margin_s) / _BEATS
    others = ""
    if longest_s >= _LEAST_HEARTBEAT_S:
        others += f", or lease.heartbeat: {_down(longest_s)}"
    if (widest_s := ttl_s - _BEATS * beat_s) >= _LEAST_MARGIN_S:
        others += f", or lease.margin: {_down(widest_s)}"
    raise UserError(
        f"lease.ttl: {_s(ttl_s)} is too short for lease.heartbeat {_s(beat_s)} and lease.margin "
        f"{_s(margin_s)}: it must be at least margin + {_BEATS:g} x heartbeat; write "
        f"lease.ttl: {_up(least_s)}{others}"
    )


def _check_worker(worker: WorkerConfig, lease: LeaseConfig) -> None:
    if worker.item_timeout_s >= lease.stall_s:
        raise UserError(
            f"worker.item_timeout: {_s(worker.item_timeout_s)} is not less than lease.stall "
            f"({_s(lease.stall_s)}), after which the whole task is given up; write "
            f"lease.stall: {_s(2 * worker.item_timeout_s)}"
        )
    if worker.backoff_s > worker.max_backoff_s:
        raise UserError(
            f"worker.backoff: {_s(worker.backoff_s)} is over worker.max_backoff "
            f"({_s(worker.max_backoff_s)}); write worker.max_backoff: {_s(worker.backoff_s)} "
            "or more"
        )


def _down(seconds: float) -> str:
    """Rounded down to a tenth, so that it works when it is written."""
    return _s(math.floor(seconds * 10 + 1e-6) / 10)


def _up(seconds: float) -> str:
    return _s(math.ceil(seconds * 10 - 1e-6) / 10)


def _s(seconds: float) -> str:
    """As the YAML takes it."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"

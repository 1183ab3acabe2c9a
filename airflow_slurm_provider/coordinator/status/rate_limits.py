"""The state of a job's rate limits: one read per limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import LimitSection
from airflow_slurm_provider.coordinator.spec_store import read_spec
from airflow_slurm_provider.units import parse_quota
from slurm_worker.errors import UserError
from slurm_worker.protocol import keys
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.ports import int_of
from slurm_worker.rate_limits.slices import bound, safe_rate, slice_of


@dataclass(frozen=True, slots=True)
class LimitState:
    """One limit."""

    name: str
    scope: str
    rate: float  #: tokens a second, as configured
    current_rate: float  #: the rate now, which is lower after a 429
    cuts: int  #: times the rate was changed
    ahead_s: float  #: how far the schedule is reserved ahead of now; 0 where the limit is idle
    #: Calls charged, of the day where there is a quota per day, else in all; of them workers hold
    #: some that they have not made yet
    used: int
    quota_per_day: int | None  #: tokens per UTC day; None for no quota


@dataclass(frozen=True, slots=True)
class SafeRate:
    """The rate to configure for a vendor's quota."""

    quota: int
    window_s: float
    rate: float  #: tokens a second; 0 if no rate keeps within the quota
    bound: float  #: the most requests in any window of the quota, at that rate


def read_limits(services: Services, job_id: JobId) -> list[LimitState]:
    """The state of a job's rate limits; raises a UserError if there is no such job."""
    return limit_states(services, read_spec(services, services.jobs(job_id).get()).limits)


def limit_states(services: Services, limits: Mapping[str, LimitSection]) -> list[LimitState]:
    """The state of the limits in a job's config."""
    found = []
    for name, limit in limits.items():
        row = services.rows.get(keys.limit_pk(limit.scope, name), keys.LIMIT_SK) or {}
        rate = int_of(row, "rate") / 1000 or limit.rate
        ahead_s = int_of(row, "tat") / 1e6 - services.clock.now()
        found.append(
            LimitState(
                name=name,
                scope=limit.scope,
                rate=limit.rate,
                current_rate=min(rate, limit.rate),
                cuts=int_of(row, "epoch"),
                ahead_s=round(max(0.0, ahead_s), 3),
                used=int_of(row, "used"),
                quota_per_day=limit.quota_per_day,
            )
        )
    return found


def rate_for(
    quota: str, *, burst: int = 1, send_window_s: float = 1.0, skew_s: float = 0.1, workers: int = 1
) -> SafeRate:
    """The rate that never oversteps a vendor's quota, such as ``600/min`` or ``100/10s``.

    `burst` and `send_window_s` are the limit's. `skew_s` is how wrong a node's clock may be; the
    worker's own estimate is under 0.1 s. Of fewer `workers` (processes), each reserves more at a
    time. Raises a UserError if `quota` is not one.
    """
    try:
        most, window_s = parse_quota(quota)
    except ValueError as error:
        raise UserError(f"--safe: {error}") from None
    # No fewer than they will reserve, as the rate comes out below the quota.
    tokens = slice_of(most / window_s, workers)
    rate = safe_rate(most, window_s, burst, send_window_s, skew_s, tokens)
    most_sent = bound(rate, burst, send_window_s, skew_s, tokens, window_s) if rate else 0.0
    return SafeRate(most, window_s, round(rate, 6), round(most_sent, 3))

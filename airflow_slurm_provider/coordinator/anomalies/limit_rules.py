"""The rules on rate limits and on cost."""

from __future__ import annotations

from collections.abc import Iterator

from airflow_slurm_provider.coordinator.anomalies.alert import AnomalyKind
from airflow_slurm_provider.coordinator.anomalies.facts import (
    WHOLE,
    Facts,
    Finding,
)
from airflow_slurm_provider.coordinator.spec.anomaly_thresholds import LEAST_DURATIONS, LEAST_EXCESS
from airflow_slurm_provider.coordinator.status.rate_limits import LimitState
from airflow_slurm_provider.units import format_percent, format_seconds

#: Part of a day's quota that counts as used up: workers that ended may have given the rest back
#: after the others began to wait.
_USED_UP = 0.98


def limit_starved(facts: Facts) -> Iterator[Finding]:
    """Workers wait, because the rate was cut after 429s or the day's quota is used up."""
    if not facts.live:
        return
    for limit in facts.look.limits:
        quota = limit.quota_per_day
        if quota and limit.used >= _USED_UP * quota:
            yield Finding(
                AnomalyKind.LIMIT_STARVED,
                limit.name,
                f"{limit.used:,} of the {quota:,} tokens that limit {limit.name} has a day are "
                f"used; {len(facts.live):,} tasks are held and wait for tomorrow (UTC)",
                "pause the job until then (slurmctl pause), so that it holds no nodes, or raise "
                "limits.<name>.quota_per_day if the vendor grants more",
                {"used": limit.used, "quota": quota, "held": len(facts.live)},
            )
        elif limit.ahead_s > 0 and limit.current_rate <= facts.thresholds.limit_cut * limit.rate:
            yield Finding(
                AnomalyKind.LIMIT_STARVED,
                limit.name,
                f"the rate of limit {limit.name} is {limit.current_rate:.3g}/s, "
                f"{format_percent(limit.current_rate / limit.rate)} of the {limit.rate:.3g}/s "
                f"that are configured: the server answered 429, and the rate was changed "
                f"{limit.cuts:,} times",
                "configure the rate that the vendor really grants (slurmctl limits --safe), and "
                "see who else uses the same quota",
                {"rate": limit.current_rate, "configured": limit.rate, "changes": limit.cuts},
            )


def limit_idle(facts: Facts) -> Iterator[Finding]:
    """A rate limit is hardly used, while tasks wait for workers."""
    limits, mark = facts.thresholds, facts.memory.mark(facts.now_ms, facts.thresholds.idle_after_s)
    worked = facts.memory.since_ms
    if mark is None or not worked or worked > mark.at_ms or not facts.live or not facts.ready:
        return
    seconds = (facts.now_ms - mark.at_ms) / 1000
    for limit in facts.look.limits:
        used = limit.used - mark.used.get(limit.name, limit.used)
        rate = used / seconds
        # A day's new quota begins with no token used.
        if used < 0 or rate > limits.idle_share * limit.current_rate:
            continue
        yield Finding(
            AnomalyKind.LIMIT_IDLE,
            limit.name,
            f"{rate:.3g} tokens/s of limit {limit.name} were used in the last "
            f"{format_seconds(seconds)}, {format_percent(rate / limit.current_rate)} of its "
            f"{limit.current_rate:.3g}/s, while {facts.ready:,} tasks wait",
            _more_workers(facts, limit, rate),
            {"used": round(rate, 4), "rate": limit.current_rate, "window_s": round(seconds, 1)},
        )


def cost(facts: Facts) -> Iterator[Finding]:
    """The job costs, or at this pace will cost, more than it was to."""
    look, limits = facts.look, facts.thresholds
    done = look.snapshot.done
    if look.dollars is None or done.tasks < LEAST_DURATIONS:
        return
    items = sum(each.items for each in look.snapshot.rounds)
    ended = done.ok + done.failed.total()
    whole = look.dollars * max(1.0, items / max(1, ended))
    if limits.budget:
        most, bound = limits.budget, f"anomalies.budget is ${limits.budget:.4g}"
    else:
        most = max(limits.cost_ratio * look.estimate, look.estimate + LEAST_EXCESS)
        bound = f"${look.estimate:.4g} were to be expected"
    if whole <= most:
        return
    yield Finding(
        AnomalyKind.COST,
        WHOLE,
        f"the workers' AWS requests cost ${look.dollars:.4g} so far, which is about ${whole:.4g} "
        f"for the whole job; {bound}",
        "slurmctl cost tells which requests it is; larger tasks (bundle) need fewer, and so do "
        "rarer checkpoints and heartbeats",
        {
            "dollars": round(look.dollars, 8),
            "whole": round(whole, 8),
            "most": round(most, 8),
            "estimate": round(look.estimate, 8),
        },
    )


def _more_workers(facts: Facts, limit: LimitState, rate: float) -> str:
    if not rate:
        return "see why the handler makes no calls, or remove the limit from the job"
    workers = facts.look.workers or len({row.owner for row in facts.live})
    wanted = max(workers + 1, round(workers * limit.current_rate / rate))
    return (
        f"{workers:,} workers do this; about {wanted:,} would use the limit up: add some "
        "(slurmctl workers), or raise worker.concurrency"
    )

"""The rules on rate limits and on cost."""

from __future__ import annotations

from collections.abc import Iterator

from airflow_slurm_provider.coordinator.anomalies.alert import AnomalyKind
from airflow_slurm_provider.coordinator.anomalies.rule_context import WHOLE, Detection, RuleContext
from airflow_slurm_provider.coordinator.spec.anomaly_thresholds import LEAST_DURATIONS, LEAST_EXCESS
from airflow_slurm_provider.coordinator.status.rate_limits import LimitState
from airflow_slurm_provider.units import format_percent, format_seconds

#: Part of a day's quota that counts as used up: workers that ended may have given the rest back
#: after the others began to wait.
_USED_UP = 0.98


def limit_starved(context: RuleContext) -> Iterator[Detection]:
    """Workers wait: the rate was cut after a 429, or the day's quota is used up."""
    if not context.live:
        return
    for limit in context.observation.limits:
        quota = limit.quota_per_day
        if quota and limit.used >= _USED_UP * quota:
            yield Detection(
                AnomalyKind.LIMIT_STARVED,
                limit.name,
                f"limit {limit.name} has used {limit.used:,} of {quota:,} tokens of the day; "
                f"{len(context.live):,} held tasks wait until tomorrow (UTC)",
                "pause the job until then (slurmctl pause) to free its nodes; or raise "
                "limits.<name>.quota_per_day if the vendor allows more",
                {"used": limit.used, "quota": quota, "held": len(context.live)},
            )
        elif limit.ahead_s > 0 and limit.current_rate <= context.thresholds.limit_cut * limit.rate:
            yield Detection(
                AnomalyKind.LIMIT_STARVED,
                limit.name,
                f"the rate of limit {limit.name} is {limit.current_rate:.3g}/s, "
                f"{format_percent(limit.current_rate / limit.rate)} of the configured "
                f"{limit.rate:.3g}/s: the server answered 429, and the rate was changed "
                f"{limit.cuts:,} times",
                "configure the rate that the vendor allows (slurmctl limits --safe), and check "
                "whether other programs use the same quota",
                {"rate": limit.current_rate, "configured": limit.rate, "changes": limit.cuts},
            )


def limit_idle(context: RuleContext) -> Iterator[Detection]:
    """A rate limit is hardly used, while tasks wait for workers."""
    limits, baseline = context.thresholds, context.baseline
    sample = baseline.sample_before(context.now_ms, limits.idle_after)
    if sample is None or not 0 < baseline.since_ms <= sample.at_ms:
        return
    if not context.live or not context.snapshot.ready:
        return
    seconds = (context.now_ms - sample.at_ms) / 1000
    for limit in context.observation.limits:
        used = limit.used - sample.used.get(limit.name, limit.used)
        rate = used / seconds
        # A day's new quota begins with no token used.
        if used < 0 or rate > limits.idle_share * limit.current_rate:
            continue
        yield Detection(
            AnomalyKind.LIMIT_IDLE,
            limit.name,
            f"limit {limit.name} was used at {rate:.3g} tokens/s in the last "
            f"{format_seconds(seconds)}, {format_percent(rate / limit.current_rate)} of its "
            f"{limit.current_rate:.3g}/s, while {context.snapshot.ready:,} tasks wait",
            _more_workers(context, limit, rate),
            {"used": round(rate, 4), "rate": limit.current_rate, "window_s": round(seconds, 1)},
        )


def cost(context: RuleContext) -> Iterator[Detection]:
    """The job costs, or at this rate will cost, more than expected."""
    observation, limits = context.observation, context.thresholds
    done = observation.snapshot.done
    if observation.dollars is None or done.tasks < LEAST_DURATIONS:
        return
    items = sum(round_row.items for round_row in observation.snapshot.rounds)
    ended = done.ok + done.failed.total()
    whole = observation.dollars * max(1.0, items / max(1, ended))
    if limits.budget:
        most, bound = limits.budget, f"anomalies.budget is ${limits.budget:.4g}"
    else:
        most = max(limits.cost_ratio * observation.estimate, observation.estimate + LEAST_EXCESS)
        bound = f"${observation.estimate:.4g} were expected"
    if whole <= most:
        return
    yield Detection(
        AnomalyKind.COST,
        WHOLE,
        f"the workers' AWS requests cost ${observation.dollars:.4g} so far, about ${whole:.4g} "
        f"for the whole job; {bound}",
        "slurmctl cost shows which requests these are; larger tasks (bundle), fewer checkpoints "
        "and a longer heartbeat need fewer requests",
        {
            "dollars": round(observation.dollars, 8),
            "whole": round(whole, 8),
            "most": round(most, 8),
            "estimate": round(observation.estimate, 8),
        },
    )


def _more_workers(context: RuleContext, limit: LimitState, rate: float) -> str:
    if not rate:
        return "check why the handler makes no calls, or remove the limit from the job"
    workers = context.observation.workers or len({row.owner for row in context.live})
    wanted = max(workers + 1, round(workers * limit.current_rate / rate))
    return (
        f"{workers:,} workers use that much; about {wanted:,} would use the whole limit: add "
        "workers (slurmctl workers --add), or raise worker.concurrency"
    )

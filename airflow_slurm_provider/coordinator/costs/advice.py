"""What would make a job cheaper or quicker, in plain sentences with their numbers.

Pure functions of what a job has done. Each says nothing where nothing is to be gained, or
where too little has been seen to tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from airflow_slurm_provider.slurm.accounting import Efficiency
from airflow_slurm_provider.units import format_memory, format_seconds

#: A task should take minutes: long enough that its few requests are nothing, short enough
#: that a lost lease costs little.
_SHORT_S, _GOOD_S, _LONG_S = 10.0, 300.0, 1800.0
_TASKS_PER_WORKER = 4
_MOST_BUNDLE = 100_000
_FEW_TASKS = 10
_GAIN = 1.5
_SPARE_MEMORY = 1.3
_LEAST_SAVED = 256 << 20
_WASTED, _TIGHT = 0.5, 0.9
_IDLE_CPU = 0.3
_LEAST_CPU_S = 60
_FULL, _UNUSED = 0.9, 0.5
_MANY_LOST, _MANY_FAILED = 0.05, 0.02
#: What another try may cure.
_TRANSIENT = ("network", "timeout", "rate_limited")


@dataclass(frozen=True, slots=True)
class LimitUse:
    """A rate limit, in tokens a second."""

    name: str
    rate: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What a job has done so far.

    Args:
        tasks: tasks that are done.
        items: items in them.
        bundle: items of a task, as configured.
        workers: processes that have done them.
        calls: items under way at the same time in one worker.
        median_s: seconds that half of the tasks took at most.
        slow_s: seconds that 95 of 100 took at most.
        span_s: seconds from the first task's end to the last one's, without pauses between rounds.
        lost: leases lost.
        failed: items that failed, by error class.
        limits: the job's rate limits.
        efficiency: CPU and memory; None where Slurm could not say.
    """

    tasks: int
    items: int
    bundle: int
    workers: int
    calls: int
    median_s: float
    slow_s: float
    span_s: float
    lost: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    limits: tuple[LimitUse, ...] = ()
    efficiency: Efficiency | None = None


def advise(facts: Facts) -> list[str]:
    """Everything that there is to say."""
    return [
        *on_bundle(facts),
        *on_memory(facts.efficiency),
        *on_cpu(facts),
        *on_limits(facts),
        *on_losses(facts),
        *on_failures(facts),
    ]


def on_bundle(facts: Facts) -> Iterator[str]:
    """Whether tasks are of a good size."""
    if facts.tasks < _FEW_TASKS:
        return
    if facts.median_s < _SHORT_S:
        # Enough tasks must stay for all workers to have some until the end.
        most = min(_MOST_BUNDLE, _round(facts.items / max(1, facts.workers * _TASKS_PER_WORKER)))
        wanted = min(most, _round(facts.bundle * _GOOD_S / max(facts.median_s, 0.001)))
        if wanted >= _GAIN * facts.bundle:
            yield (
                f"half of the tasks took under {format_seconds(facts.median_s)}, at "
                f"{facts.bundle:,} items each, so much of the work is to lease and commit them; "
                f"bundle: {wanted} would need {_times(wanted / facts.bundle)} fewer requests"
            )
    elif facts.slow_s > _LONG_S:
        wanted = max(1, _round(facts.bundle * _GOOD_S / facts.median_s))
        if wanted < facts.bundle:
            yield (
                f"one task in twenty took over {format_seconds(facts.slow_s)}, and a lost lease "
                f"may cost that much; bundle: {wanted} instead of {facts.bundle} would make it "
                f"about {format_seconds(_GOOD_S)}"
            )


def on_memory(efficiency: Efficiency | None) -> Iterator[str]:
    """Whether the workers' memory is about what they use."""
    share = efficiency.memory_share if efficiency else None
    if efficiency is None or share is None:
        return
    wanted = math.ceil(efficiency.max_rss * _SPARE_MEMORY / 2**20)
    said = (
        f"{format_memory(efficiency.mem)} of memory were asked for each worker and at most "
        f"{format_memory(efficiency.max_rss)} ({share:.0%}) used"
    )
    if share > _TIGHT:
        yield f"{said}: a little more would end the worker; slurm.mem: {wanted}M leaves room"
    elif share < _WASTED and efficiency.mem - wanted * 2**20 > _LEAST_SAVED:
        yield f"{said}: slurm.mem: {wanted}M would do, and let more workers on a node"


def on_cpu(facts: Facts) -> Iterator[str]:
    """Whether the workers' CPUs are busy."""
    efficiency = facts.efficiency
    share = efficiency.cpu_share if efficiency else None
    if efficiency is None or share is None or efficiency.ended_s < _LEAST_CPU_S:
        return
    if share < _IDLE_CPU and not facts.limits:
        yield (
            f"of {efficiency.ended_s / 3600:.3g} CPU-hours given, {share:.0%} were used: items "
            f"wait for something; more of them at a time (worker.concurrency, now {facts.calls}), "
            "fewer CPUs, or larger tasks would use the nodes better"
        )


def on_limits(facts: Facts) -> Iterator[str]:
    """Workers against each limit, by Little's law: calls under way = rate * seconds of a call."""
    if facts.span_s <= 0 or not facts.workers:
        return
    pace = facts.items / facts.span_s
    at_once = facts.workers * facts.calls
    for limit in facts.limits:
        if pace >= _FULL * limit.rate:
            enough = math.ceil(limit.rate / facts.calls)
            more = (
                f"; where a call takes t seconds, {limit.rate:g} * t / {facts.calls} workers are "
                f"enough: {enough:,} for a second, and {facts.workers:,} worked"
            )
            yield (
                f"limit {limit.name!r} of {limit.rate:g}/s is used up ({pace:.3g} items/s): more "
                f"workers would only wait{more}"
            )
        elif pace < _UNUSED * limit.rate:
            wanted = math.ceil(facts.workers * limit.rate / pace)
            yield (
                f"{at_once:,} items at a time came to {pace:.3g}/s, and limit {limit.name!r} "
                f"allows {limit.rate:g}/s: at this pace {wanted:,} workers, or more "
                "worker.concurrency, would use it"
            )


def on_losses(facts: Facts) -> Iterator[str]:
    """Whether workers die, or stall, too often."""
    if facts.lost > max(2, _MANY_LOST * facts.tasks):
        yield (
            f"{facts.lost:,} leases were lost over {facts.tasks:,} tasks, and their work done "
            "again: slurmctl status tells why workers died; slurm.mem, slurm.time or lease.stall "
            "may be too small"
        )


def on_failures(facts: Facts) -> Iterator[str]:
    """Whether a retry is likely to help."""
    for name in _TRANSIENT:
        count = facts.failed.get(name, 0)
        if facts.items and count > _MANY_FAILED * facts.items:
            mend = (
                "lower the limit's rate"
                if name == "rate_limited"
                else "raise worker.tries, or lower worker.concurrency"
            )
            yield (
                f"{count:,} items ({count / facts.items:.1%}) failed as {name} although each is "
                f"tried again at once: {mend}, then slurmctl retry --errors={name}"
            )


def _round(number: float) -> int:
    """Down to two figures: nobody sets 12,736."""
    unit = 10 ** max(0, math.floor(math.log10(max(1.0, number))) - 1)
    return int(number // unit * unit)


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times" if ratio < 10 else f"{ratio:.0f} times"

"""Advice that makes a job cheaper or faster, in sentences with their numbers.

Pure functions of what a job has done. Each yields nothing where there is nothing to gain, or where
too little is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from airflow_slurm_provider.slurm.accounting import Efficiency
from airflow_slurm_provider.units import format_memory, format_seconds

#: A task should take minutes: long enough that its few requests cost little, short enough that a
#: lost lease costs little.
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
#: Errors that another try may solve.
_TRANSIENT = ("network", "timeout", "rate_limited")


@dataclass(frozen=True, slots=True)
class JobProfile:
    """A job's work so far, as the advice needs it."""

    tasks: int  #: those that are done; `items` are in them
    items: int
    bundle: int  #: items of a task, as configured
    workers: int  #: processes that have done them
    calls: int  #: items that one worker processes at the same time
    median_s: float  #: seconds that half of the tasks took at most
    slow_s: float  #: seconds that 95 of 100 took at most
    #: Seconds from the first task's end to the last one's, without pauses between rounds
    span_s: float
    lost: int = 0  #: leases lost
    failed: dict[str, int] = field(default_factory=dict)  #: items that failed, by error class
    #: The job's rate limits, in tokens a second, by name
    limits: Mapping[str, float] = field(default_factory=dict)
    efficiency: Efficiency | None = None  #: CPU and memory; None where Slurm did not report it


def advise(profile: JobProfile) -> list[str]:
    """All advice on a job."""
    return [
        *bundle_advice(profile),
        *memory_advice(profile.efficiency),
        *cpu_advice(profile),
        *limit_advice(profile),
        *lease_advice(profile),
        *failure_advice(profile),
    ]


def bundle_advice(profile: JobProfile) -> Iterator[str]:
    """Advice on the size of tasks."""
    if profile.tasks < _FEW_TASKS:
        return
    if profile.median_s < _SHORT_S:
        # Enough tasks must be left to keep all workers busy until the end.
        most = min(
            _MOST_BUNDLE, _round(profile.items / max(1, profile.workers * _TASKS_PER_WORKER))
        )
        wanted = min(most, _round(profile.bundle * _GOOD_S / max(profile.median_s, 0.001)))
        if wanted >= _GAIN * profile.bundle:
            yield (
                f"half of the tasks took under {format_seconds(profile.median_s)}, at "
                f"{profile.bundle:,} items each, so much of the work is to lease and commit them; "
                f"bundle: {wanted} would need {_times(wanted / profile.bundle)} fewer requests"
            )
    elif profile.slow_s > _LONG_S:
        wanted = max(1, _round(profile.bundle * _GOOD_S / profile.median_s))
        if wanted < profile.bundle:
            yield (
                f"one task in twenty took over {format_seconds(profile.slow_s)}, and a lost lease "
                f"may cost that much; bundle: {wanted} instead of {profile.bundle} would make it "
                f"about {format_seconds(_GOOD_S)}"
            )


def memory_advice(efficiency: Efficiency | None) -> Iterator[str]:
    """Advice on the workers' memory."""
    share = efficiency.memory_share if efficiency else None
    if efficiency is None or share is None:
        return
    wanted = math.ceil(efficiency.max_rss * _SPARE_MEMORY / 2**20)
    used = (
        f"{format_memory(efficiency.mem)} of memory were requested for each worker, and at most "
        f"{format_memory(efficiency.max_rss)} ({share:.0%}) used"
    )
    if share > _TIGHT:
        yield f"{used}: with a little more the worker is killed; slurm.mem: {wanted}M leaves room"
    elif share < _WASTED and efficiency.mem - wanted * 2**20 > _LEAST_SAVED:
        yield f"{used}: slurm.mem: {wanted}M would be enough, and more workers would fit on a node"


def cpu_advice(profile: JobProfile) -> Iterator[str]:
    """Advice on the workers' CPUs."""
    efficiency = profile.efficiency
    share = efficiency.cpu_share if efficiency else None
    if efficiency is None or share is None or efficiency.ended_s < _LEAST_CPU_S:
        return
    if share < _IDLE_CPU and not profile.limits:
        yield (
            f"{share:.0%} of {efficiency.ended_s / 3600:.3g} allocated CPU-hours were used: items "
            f"wait for something; more items at a time (worker.concurrency, now {profile.calls}), "
            "fewer CPUs, or larger tasks would use the nodes better"
        )


def limit_advice(profile: JobProfile) -> Iterator[str]:
    """Advice on workers per limit, by Little's law: open calls = rate * seconds of a call."""
    if profile.span_s <= 0 or not profile.workers:
        return
    pace = profile.items / profile.span_s
    at_once = profile.workers * profile.calls
    for name, rate in profile.limits.items():
        if pace >= _FULL * rate:
            enough = math.ceil(rate / profile.calls)
            yield (
                f"limit {name!r} of {rate:g}/s is fully used ({pace:.3g} items/s): more workers "
                f"would only wait; for calls of t seconds, {rate:g} * t / {profile.calls} workers "
                f"are enough: {enough:,} for calls of 1 s; the job had {profile.workers:,}"
            )
        elif pace < _UNUSED * rate:
            wanted = math.ceil(profile.workers * rate / pace)
            yield (
                f"{at_once:,} items at a time gave {pace:.3g} items/s, but limit {name!r} "
                f"allows {rate:g}/s: {wanted:,} workers at this speed, or a higher "
                "worker.concurrency, would use it"
            )


def lease_advice(profile: JobProfile) -> Iterator[str]:
    """Advice where workers die, or stall, too often."""
    if profile.lost > max(2, _MANY_LOST * profile.tasks):
        yield (
            f"{profile.lost:,} leases were lost over {profile.tasks:,} tasks, and their work was "
            "repeated: slurmctl status shows why workers died; slurm.mem, slurm.time or "
            "lease.stall may be too small"
        )


def failure_advice(profile: JobProfile) -> Iterator[str]:
    """Advice where a retry is likely to help."""
    for name in _TRANSIENT:
        count = profile.failed.get(name, 0)
        if profile.items and count > _MANY_FAILED * profile.items:
            fix = (
                "lower the limit's rate"
                if name == "rate_limited"
                else "raise worker.tries, or lower worker.concurrency"
            )
            yield (
                f"{count:,} items ({count / profile.items:.1%}) failed as {name}, although each "
                f"was tried again at once: {fix}, then slurmctl retry --errors={name}"
            )


def _round(number: float) -> int:
    """Rounded down to two digits: 12,000 rather than 12,736."""
    unit = 10 ** max(0, math.floor(math.log10(max(1.0, number))) - 1)
    return int(number // unit * unit)


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times" if ratio < 10 else f"{ratio:.0f} times"

"""The rules. Each yields a finding where its condition holds.

A rule yields nothing where its counts are too small (`spec/anomaly_thresholds.py` has the reasons).
`EXPLAINS` keeps one cause from being reported twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from airflow_slurm_provider.coordinator.anomalies.alert import AnomalyKind
from airflow_slurm_provider.coordinator.anomalies.baseline import node_of
from airflow_slurm_provider.coordinator.anomalies.rule_context import WHOLE, Detection, RuleContext
from airflow_slurm_provider.coordinator.anomalies.statistics import (
    Share,
    Timeline,
    at_least,
    exceeds,
    spread_of,
)
from airflow_slurm_provider.coordinator.spec.anomaly_thresholds import (
    LEAST_ITEMS,
    LEAST_PER_WINDOW,
    LEAST_TASKS,
    LEAST_TOUCHED,
    LEAST_WINDOWS,
    MOST_CHANCE,
    MOST_NAMED,
    SHARE_RATIO,
    SLOW_DEVIATIONS,
    SLOW_WINDOWS,
)
from airflow_slurm_provider.units import format_percent, format_seconds
from slurm_worker.protocol.keys import TaskState
from slurm_worker.protocol.tasks import TaskRow

Rule = Callable[[RuleContext], Iterator[Detection]]

_SLOWER = frozenset({AnomalyKind.THROUGHPUT, AnomalyKind.LIMIT_IDLE})
_STUCK = _SLOWER | {AnomalyKind.STALL, AnomalyKind.STRAGGLER}
#: Not reported while the anomaly on the left holds, because they follow from it.
EXPLAINS: dict[AnomalyKind, frozenset[AnomalyKind]] = {
    AnomalyKind.BAD_NODE: frozenset(
        {AnomalyKind.ERROR_RATE, AnomalyKind.LEASE_LOSS, AnomalyKind.THROUGHPUT}
    ),
    AnomalyKind.LIMIT_STARVED: _STUCK | {AnomalyKind.ERROR_RATE},
    AnomalyKind.LEASE_LOSS: _STUCK,
    AnomalyKind.NO_PROGRESS: _STUCK | {AnomalyKind.COST},
    AnomalyKind.STALL: _STUCK - {AnomalyKind.STALL},
    AnomalyKind.ERROR_RATE: _SLOWER,
    AnomalyKind.THROUGHPUT: frozenset({AnomalyKind.STRAGGLER, AnomalyKind.LIMIT_IDLE}),
}
#: So many leases of one task were given back with none of its items done. A worker also exits after
#: five leases without a result.
_VAIN_LEASES = 5
#: With so many items in a task, single items measure progress better than ended tasks.
_MANY_ITEMS = 10


def stall(context: RuleContext) -> Iterator[Detection]:
    """Nothing ends, although tasks are held by live workers."""
    done, baseline = context.snapshot.done, context.baseline
    stragglers = len(context.slow) == len({row.owner for row in context.live}) <= MOST_NAMED
    if not context.live or (stragglers and not context.snapshot.ready):
        return
    since_ms = max(baseline.ended_ms, context.live[0].started_ms)
    still_s = (context.now_ms - since_ms) / 1000
    window_s, known = context.thresholds.stall_first, "no task of this job has ended yet"
    if context.usual is not None:
        usual, per_task = context.usual, (done.ok + done.failed.total()) / done.tasks
        longest_s = 2 * usual.median_s if per_task >= _MANY_ITEMS else usual.longest_s
        window_s = max(context.thresholds.stall, longest_s)
        known = f"tasks of this job take {format_seconds(usual.median_s)} at the median"
    if still_s <= window_s:
        return
    yield Detection(
        AnomalyKind.STALL,
        WHOLE,
        f"no item has ended for {format_seconds(still_s)}; live workers hold "
        f"{len(context.live):,} tasks, and {context.snapshot.ready:,} wait ({known}; the limit is "
        f"{format_seconds(window_s)})",
        "check what the handler waits for (slurmctl logs); with worker.item_timeout an item that "
        "hangs fails with class timeout",
        {"still_s": round(still_s, 1), "window_s": round(window_s, 1), "held": len(context.live)},
    )


def error_rate(context: RuleContext) -> Iterator[Detection]:
    """The share of items that fail with one class is far larger than before."""
    stretches = _stretches(context)
    if not stretches:
        return
    buckets = context.timeline.buckets
    for name in sorted({name for bucket in buckets[stretches[-1] :] for name in bucket.failed}):
        # A reported anomaly lasts for as long as the shortest stretch is bad.
        lasts = (AnomalyKind.ERROR_RATE, name) in context.levels
        candidates = stretches[:1] if lasts else stretches
        rises = [_rise(context, name, first, stretches[0]) for first in candidates]
        found = [finding for finding in rises if finding is not None]
        if found:
            yield max(found, key=lambda rise: rise.numbers["share"] - rise.numbers["before"])


def _rise(context: RuleContext, name: str, recent: int, last: int) -> Detection | None:
    """The finding on a class, if its share since the bucket `recent` is too large.

    It must still be in the shortest stretch, since the bucket `last`.
    """
    timeline, limits = context.timeline, context.thresholds
    # One bad task is not a rise, however many of its items failed.
    if sum(bucket.touched[name] for bucket in timeline.buckets[recent:]) < LEAST_TOUCHED:
        return None
    now, before = timeline.share(name, recent), timeline.share(name, 0, recent)
    level = context.levels.get((AnomalyKind.ERROR_RATE, name))
    known = before.enough and before.value < limits.error_first
    if level is not None:
        # By now "before" includes the bad minutes: the first base stays.
        base = min(before.value, level["before"])
        rises = now.value - base >= limits.error_rise
    elif recent == last and context.snapshot.job.rounds < 2 and not known:
        # A job that was bad from the start has no earlier share to compare with.
        base, rises = 0.0, now.value >= limits.error_first
    else:
        base = before.value
        lasts = timeline.share(name, last).value - base >= limits.error_rise
        rises = lasts and before.enough and exceeds(now, before, limits.error_rise)
    if not rises or _of_one_node(context, base + limits.error_rise):
        return None
    seconds = (len(timeline.buckets) - recent) * timeline.width_s
    return Detection(
        AnomalyKind.ERROR_RATE,
        name,
        f"{format_percent(now.value)} of the {now.tried:,} items of the last "
        f"{format_seconds(seconds)} failed with {name}; before it was {format_percent(base)}",
        f"slurmctl errors --class {name} shows examples; to stop the job, use slurmctl pause; "
        "retry the class when the cause is fixed",
        _rounded(share=now.value, before=base) | {"failed": now.failed, "items": now.tried},
    )


def throughput(context: RuleContext) -> Iterator[Detection]:
    """Far fewer items end per second than did before."""
    if not context.snapshot.ready or not context.usual or not context.baseline.since_ms:
        return
    done, limits = context.snapshot.done, context.thresholds
    since_ms = max(context.round_ms, context.baseline.since_ms)
    timeline = Timeline.of(done, since_ms, context.now_ms)
    tasks = sum(bucket.tasks for bucket in timeline.buckets)
    if not tasks:
        return
    rate = tasks / (len(timeline.buckets) * timeline.width_s)
    width_s = max(limits.window / 5, 2 * context.usual.median_s, LEAST_PER_WINDOW / rate)
    length = math.ceil(width_s / timeline.width_s)
    # In the first one the workers were started.
    windows = timeline.windows(length)[1:]
    if len(windows) < LEAST_WINDOWS + SLOW_WINDOWS:
        return
    seconds = length * timeline.width_s
    rates = [(window.ok + window.failed.total()) / seconds for window in windows]
    # By their logarithm, since rates vary by factors.
    middle, spread = spread_of([math.log(max(rate, 1 / seconds)) for rate in rates[:-SLOW_WINDOWS]])
    usual, factor = math.exp(middle), math.exp(spread)
    level = context.levels.get((AnomalyKind.THROUGHPUT, WHOLE))
    usual = max(usual, level["usual"]) if level is not None else usual
    least = min(usual * (1 - limits.throughput_drop), usual / factor**SLOW_DEVIATIONS)
    # A job that has stopped entirely is a stall, or soon will be.
    lately = sum(bucket.tasks for bucket in timeline.buckets[-math.ceil(length / 2) :])
    if not lately or max(rates[-SLOW_WINDOWS:]) >= least:
        return
    now = sum(rates[-SLOW_WINDOWS:]) / SLOW_WINDOWS
    running = context.observation.workers
    workers = "" if running is None else f" by {running:,} workers"
    yield Detection(
        AnomalyKind.THROUGHPUT,
        WHOLE,
        f"only {now:.1f} items/s ended in the last {format_seconds(SLOW_WINDOWS * seconds)}"
        f"{workers}; before it was {usual:.1f} items/s, mostly {usual / factor:.1f} to "
        f"{usual * factor:.1f}",
        "check whether workers died (slurmctl status), or whether the service that the handler "
        "calls has become slower",
        {
            "rate": round(now, 3),
            "usual": round(usual, 3),
            "factor": round(factor, 3),
            "window_s": seconds,
            "workers": -1 if running is None else running,
        },
    )


def straggler(context: RuleContext) -> Iterator[Detection]:
    """A task is held far longer than tasks of this job take."""
    if not context.slow or context.usual is None:
        return
    usual = context.usual
    numbers = {"median_s": round(usual.median_s, 1), "usual_s": round(usual.longest_s, 1)}
    median, longest = format_seconds(usual.median_s), format_seconds(usual.longest_s)
    typical = f"the median task takes {median}, and hardly any takes over {longest}"
    advice = "check what its worker does (slurmctl logs); worker.item_timeout limits an item's time"
    if len(context.slow) > MOST_NAMED:
        worst = context.slow[0]
        yield Detection(
            AnomalyKind.STRAGGLER,
            "several",
            f"{len(context.slow):,} tasks are held for very long, {worst.task} for "
            f"{format_seconds(context.held_s(worst))}; {typical}",
            advice,
            {**numbers, "held_s": round(context.held_s(worst), 1), "tasks": len(context.slow)},
        )
        return
    for row in context.slow:
        held_s = context.held_s(row)
        yield Detection(
            AnomalyKind.STRAGGLER,
            row.task,
            f"task {row.task} has been held for {format_seconds(held_s)} by {row.owner} "
            f"({row.items_ok + row.items_failed:,} of {row.where.count:,} items ended); "
            f"{typical}",
            advice,
            {**numbers, "held_s": round(held_s, 1), "attempt": row.attempt},
        )


def bad_node(context: RuleContext) -> Iterator[Detection]:
    """Items fail, or leases are lost, on one node and not on the others."""
    shares = context.nodes
    for name, share in shares.items():
        others = _others(shares, name)
        if not share.enough or not others.enough:
            continue
        if exceeds(share, others, context.thresholds.node_rise):
            yield Detection(
                AnomalyKind.BAD_NODE,
                name,
                f"{format_percent(share.value)} of {share.tried:,} items failed on node {name}; "
                f"on the other nodes {format_percent(others.value)} of {others.tried:,}",
                _node_advice(name),
                _rounded(share=share.value, others=others.value)
                | {"items": share.tried, "tasks": share.tasks},
            )
    yield from _losing_node(context)


def lease_loss(context: RuleContext) -> Iterator[Detection]:
    """Many leases ran out: workers die, freeze, or can't reach the table."""
    limits = context.thresholds
    baseline = context.baseline
    sample = baseline.sample_before(context.now_ms, limits.window)
    sample = sample or next(iter(baseline.samples), None)
    lost = max(0, context.snapshot.lost - sample.lost) if sample is not None else 0
    overdue = len(context.overdue)
    total = lost + overdue
    if total < limits.losses or total * 5 < len(context.snapshot.leased):
        return
    yield Detection(
        AnomalyKind.LEASE_LOSS,
        WHOLE,
        f"{lost:,} leases were lost within {format_seconds(limits.window)}, and workers have "
        f"stopped renewing {overdue:,} more; they renew {len(context.live):,}",
        "slurmctl status shows how workers died (memory, time limit, node); if none died, they "
        "can't reach the table, or lease.ttl is too short",
        {"lost": lost, "overdue": overdue, "held": len(context.live)},
    )


def _stretches(context: RuleContext) -> list[int]:
    """The first buckets of the recent stretches that may have been bad, the shortest first.

    The shortest holds just enough tasks. If it began in a bad time, the time before is bad as well.
    So longer ones follow, up to the window, for a first observation that comes late.
    """
    timeline, window_s = context.timeline, context.thresholds.window
    least = math.ceil(window_s / 5 / timeline.width_s)
    count, tasks, items = len(timeline.buckets), 0, 0
    found: list[int] = []
    for length in range(1, count + 1):
        bucket = timeline.buckets[count - length]
        tasks += bucket.tasks
        items += bucket.ok + bucket.failed.total()
        if found and length * timeline.width_s > window_s:
            break
        wanted = 1.5 * (count - found[-1]) if found else least
        if tasks >= LEAST_TASKS and items >= LEAST_ITEMS and length >= wanted:
            found.append(count - length)
    return found


def _of_one_node(context: RuleContext, most: float) -> bool:
    """Whether there is no rise without one node, even if it is too early to report that node.

    Nodes are compared over a longer time than the rise, so all their shares are smaller. A node's
    share is compared with that of the others, and theirs with the limit.
    """
    for name, share in context.nodes.items():
        others = _others(context.nodes, name)
        worse = share.failed and share.value >= SHARE_RATIO * others.value
        if others.tasks and worse and others.value < most:
            return True
    return False


def _losing_node(context: RuleContext) -> Iterator[Detection]:
    """One node lost more of the recently lost leases than chance explains."""
    if (AnomalyKind.LEASE_LOSS, WHOLE) in context.levels:
        return
    nodes = context.observation.nodes
    lost_on = Counter(node for _, node in context.baseline.lost_leases if node)
    lost_on.update(node for row in context.overdue if (node := node_of(row.owner, nodes)))
    workers = Counter(nodes.values())
    for name, lost in lost_on.items():
        if lost < context.thresholds.losses or workers[name] == workers.total():
            continue
        chance = at_least(lost, lost_on.total(), workers[name] / workers.total())
        if chance <= MOST_CHANCE:
            yield Detection(
                AnomalyKind.BAD_NODE,
                name,
                f"{lost:,} of {lost_on.total():,} leases that were lost, or are not renewed, were "
                f"held on node {name}, which has {workers[name]:,} of {workers.total():,} workers",
                _node_advice(name),
                {"lost": lost, "of": lost_on.total(), "chance": round(chance, 6)},
            )


def _node_advice(name: str) -> str:
    return (
        f"keep workers off it with slurm.exclude: {name}, inform the cluster's staff, and retry "
        "what failed there"
    )


def _others(shares: Mapping[str, Share], name: str) -> Share:
    """What all nodes have in sum except this one."""
    return sum((share for other, share in shares.items() if other != name), Share())


def _rounded(**shares: float) -> dict[str, float]:
    return {name: round(share, 4) for name, share in shares.items()}


def no_progress(context: RuleContext) -> Iterator[Detection]:
    """Tasks are leased and given back again and again, and none of their items ends."""
    snapshot = context.snapshot
    rows = (*snapshot.leased, *snapshot.given_back)
    vain = {row.task: count for row in rows if (count := _given_back(context, row)) >= _VAIN_LEASES}
    if not vain:
        return
    worst = max(vain, key=lambda task: vain[task])
    yield Detection(
        AnomalyKind.NO_PROGRESS,
        WHOLE,
        f"task {worst} was leased and given back {vain[worst]:,} times, and none of its items "
        f"has ended; {len(vain):,} tasks are in this state",
        "check why workers give it back (slurmctl logs): an item may take longer than a worker "
        "runs (slurm.time, preemption), or the nodes' clocks jump",
        {"tasks": len(vain), "leases": vain[worst]},
    )


def _given_back(context: RuleContext, row: TaskRow) -> int:
    """How often a task was certainly given back, where none of its items has ended."""
    if row.items_ok or row.items_failed or row.checkpoint:
        return 0
    lease = context.observation.lease
    held = int(row.state is TaskState.LEASED)
    # A reopened task has lost the counts of its earlier tries and lost leases.
    forgotten = row.reopened * (lease.max_tries + lease.max_lost)
    return row.attempt - held - row.lost - row.tries - len(row.crashes) - forgotten

"""The rules: each looks at the facts, and yields a finding where its condition holds.

A rule stays silent where its counts are too small to tell (`spec/anomaly_thresholds.py` says why
so). `EXPLAINS` keeps one cause from being told twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator

from airflow_slurm_provider.coordinator.anomalies.alert import AnomalyKind
from airflow_slurm_provider.coordinator.anomalies.baseline import node_of
from airflow_slurm_provider.coordinator.anomalies.facts import (
    WHOLE,
    Facts,
    Finding,
)
from airflow_slurm_provider.coordinator.anomalies.statistics import (
    Share,
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

Rule = Callable[[Facts], Iterator[Finding]]

#: What is not told while the anomaly on the left holds, because it follows from it.
EXPLAINS: dict[AnomalyKind, frozenset[AnomalyKind]] = {
    AnomalyKind.BAD_NODE: frozenset(
        {AnomalyKind.ERROR_RATE, AnomalyKind.LEASE_LOSS, AnomalyKind.THROUGHPUT}
    ),
    AnomalyKind.LIMIT_STARVED: frozenset(
        {
            AnomalyKind.STALL,
            AnomalyKind.STRAGGLER,
            AnomalyKind.THROUGHPUT,
            AnomalyKind.ERROR_RATE,
            AnomalyKind.LIMIT_IDLE,
        }
    ),
    AnomalyKind.LEASE_LOSS: frozenset(
        {AnomalyKind.STALL, AnomalyKind.STRAGGLER, AnomalyKind.THROUGHPUT, AnomalyKind.LIMIT_IDLE}
    ),
    AnomalyKind.NO_PROGRESS: frozenset(
        {
            AnomalyKind.STALL,
            AnomalyKind.STRAGGLER,
            AnomalyKind.THROUGHPUT,
            AnomalyKind.LIMIT_IDLE,
            AnomalyKind.COST,
        }
    ),
    AnomalyKind.STALL: frozenset(
        {AnomalyKind.STRAGGLER, AnomalyKind.THROUGHPUT, AnomalyKind.LIMIT_IDLE}
    ),
    AnomalyKind.ERROR_RATE: frozenset({AnomalyKind.THROUGHPUT, AnomalyKind.LIMIT_IDLE}),
    AnomalyKind.THROUGHPUT: frozenset({AnomalyKind.STRAGGLER, AnomalyKind.LIMIT_IDLE}),
}
#: Leases of one task that were given back, none of its items done, from which on it is told. A
#: worker whose leases all come to nothing ends after five.
_VAIN_LEASES = 5
#: Items of a task from which on its single items tell progress better than its end does.
_MANY_ITEMS = 10


def stall(facts: Facts) -> Iterator[Finding]:
    """Nothing ends, although tasks are held by live workers."""
    done, memory = facts.look.snapshot.done, facts.memory
    stragglers = len(facts.slow) == len({row.owner for row in facts.live}) <= MOST_NAMED
    if not facts.live or (stragglers and not facts.ready):
        return
    since_ms = max(memory.ended_ms, facts.live[0].started_ms)
    still_s = (facts.now_ms - since_ms) / 1000
    window_s, known = facts.thresholds.stall_first_s, "no task of this job has ended yet"
    if facts.usual is not None:
        usual, per_task = facts.usual, (done.ok + done.failed.total()) / done.tasks
        longest_s = 2 * usual.median_s if per_task >= _MANY_ITEMS else usual.longest_s
        window_s = max(facts.thresholds.stall_s, longest_s)
        known = f"tasks of this job take {format_seconds(usual.median_s)} at the median"
    if still_s <= window_s:
        return
    yield Finding(
        AnomalyKind.STALL,
        WHOLE,
        f"no item has ended for {format_seconds(still_s)}, although {len(facts.live):,} tasks are "
        f"held by live workers and {facts.ready:,} wait ({known}; told after "
        f"{format_seconds(window_s)})",
        "look at what the handler waits for (slurmctl logs), and set worker.item_timeout so that "
        "an item that hangs fails with class timeout",
        {"still_s": round(still_s, 1), "window_s": round(window_s, 1), "held": len(facts.live)},
    )


def error_rate(facts: Facts) -> Iterator[Finding]:
    """A class of failures has a far larger share of the items than before."""
    stretches = _stretches(facts)
    if not stretches:
        return
    buckets = facts.timeline.buckets
    for name in sorted({name for each in buckets[stretches[-1] :] for name in each.failed}):
        # What was told already lasts for as long as the shortest is bad.
        looked_at = stretches[:1] if (AnomalyKind.ERROR_RATE, name) in facts.levels else stretches
        rises = [_rise(facts, name, each, stretches[0]) for each in looked_at]
        found = [each for each in rises if each is not None]
        if found:
            yield max(found, key=lambda each: each.numbers["share"] - each.numbers["before"])


def _rise(facts: Facts, name: str, recent: int, last: int) -> Finding | None:
    """What there is to tell of a class, if its share since the bucket `recent` is too large.

    It must still be in the shortest stretch, since the bucket `last`.
    """
    timeline, limits = facts.timeline, facts.thresholds
    # One bad task, however many of its items failed, is no rise.
    if sum(each.touched[name] for each in timeline.buckets[recent:]) < LEAST_TOUCHED:
        return None
    now, before = timeline.share(name, recent), timeline.share(name, 0, recent)
    level = facts.levels.get((AnomalyKind.ERROR_RATE, name))
    known = before.enough and before.value < limits.error_first
    if level is not None:
        # The bad minutes are part of what was before by now: the bar stays as it was.
        base = min(before.value, level["before"])
        rises = now.value - base >= limits.error_rise
    elif recent == last and facts.look.snapshot.job.rounds < 2 and not known:
        # Bad from the start is told whenever the first look comes, and is no measure.
        base, rises = 0.0, now.value >= limits.error_first
    else:
        base = before.value
        lasts = timeline.share(name, last).value - base >= limits.error_rise
        rises = lasts and before.enough and exceeds(now, before, limits.error_rise)
    if not rises or _of_one_node(facts, base + limits.error_rise):
        return None
    return _error_finding(facts, name, now, base, recent)


def throughput(facts: Facts) -> Iterator[Finding]:
    """Far fewer items end per second than did before."""
    if not facts.ready or not facts.usual or not facts.memory.since_ms:
        return
    done, limits = facts.look.snapshot.done, facts.thresholds
    timeline = type(facts.timeline).of(
        done, max(facts.round_ms, facts.memory.since_ms), facts.now_ms
    )
    tasks = sum(each.tasks for each in timeline.buckets)
    if not tasks:
        return
    rate = tasks / (len(timeline.buckets) * timeline.width_s)
    width_s = max(limits.window_s / 5, 2 * facts.usual.median_s, LEAST_PER_WINDOW / rate)
    length = math.ceil(width_s / timeline.width_s)
    # The first one holds the start of workers.
    windows = timeline.windows(length)[1:]
    if len(windows) < LEAST_WINDOWS + SLOW_WINDOWS:
        return
    seconds = length * timeline.width_s
    rates = [(each.ok + each.failed.total()) / seconds for each in windows]
    # By their logarithm: a rate varies by parts of itself.
    middle, spread = spread_of([math.log(max(each, 1 / seconds)) for each in rates[:-SLOW_WINDOWS]])
    usual, factor = math.exp(middle), math.exp(spread)
    level = facts.levels.get((AnomalyKind.THROUGHPUT, WHOLE))
    usual = max(usual, level["usual"]) if level is not None else usual
    least = min(usual * (1 - limits.throughput_drop), usual / factor**SLOW_DEVIATIONS)
    # What has stopped altogether is a stall, or soon will be.
    lately = sum(each.tasks for each in timeline.buckets[-math.ceil(length / 2) :])
    if not lately or max(rates[-SLOW_WINDOWS:]) >= least:
        return
    now = sum(rates[-SLOW_WINDOWS:]) / SLOW_WINDOWS
    workers = "" if facts.look.workers is None else f", by {facts.look.workers:,} workers"
    yield Finding(
        AnomalyKind.THROUGHPUT,
        WHOLE,
        f"{now:.1f} items/s have ended in the last {format_seconds(SLOW_WINDOWS * seconds)}"
        f"{workers}; {usual:.1f} items/s were usual before, mostly {usual / factor:.1f} to "
        f"{usual * factor:.1f}",
        "look whether workers were lost (slurmctl status) or whatever the handler calls has "
        "become slower",
        {
            "rate": round(now, 3),
            "usual": round(usual, 3),
            "factor": round(factor, 3),
            "window_s": seconds,
            "workers": -1 if facts.look.workers is None else facts.look.workers,
        },
    )


def straggler(facts: Facts) -> Iterator[Finding]:
    """A task is held far longer than tasks of this job take."""
    if not facts.slow or facts.usual is None:
        return
    usual = facts.usual
    numbers = {"median_s": round(usual.median_s, 1), "usual_s": round(usual.longest_s, 1)}
    median, longest = format_seconds(usual.median_s), format_seconds(usual.longest_s)
    told = f"tasks take {median} at the median, and {longest}"
    advice = "see what its worker does (slurmctl logs); worker.item_timeout bounds an item's time"
    if len(facts.slow) > MOST_NAMED:
        worst = facts.slow[0]
        yield Finding(
            AnomalyKind.STRAGGLER,
            "several",
            f"{len(facts.slow):,} tasks are held for very long, {worst.task} for "
            f"{format_seconds(facts.held_s(worst))}; {told} hardly ever",
            advice,
            {**numbers, "held_s": round(facts.held_s(worst), 1), "tasks": len(facts.slow)},
        )
        return
    for row in facts.slow:
        held_s = facts.held_s(row)
        yield Finding(
            AnomalyKind.STRAGGLER,
            row.task,
            f"task {row.task} has been held for {format_seconds(held_s)} by {row.owner} "
            f"({row.items_ok + row.items_failed:,} of {row.where.count:,} items ended); "
            f"{told} hardly ever",
            advice,
            {**numbers, "held_s": round(held_s, 1), "attempt": row.attempt},
        )


def bad_node(facts: Facts) -> Iterator[Finding]:
    """Items fail, or leases are lost, on one node and not on the others."""
    shares = facts.nodes
    for name, share in shares.items():
        others = _sum(each for other, each in shares.items() if other != name)
        if not share.enough or not others.enough:
            continue
        if exceeds(share, others, facts.thresholds.node_rise):
            yield Finding(
                AnomalyKind.BAD_NODE,
                name,
                f"on node {name} {format_percent(share.value)} of {share.tried:,} items failed, on "
                f"the others {format_percent(others.value)} of {others.tried:,}",
                _node_advice(name),
                {
                    "share": round(share.value, 4),
                    "others": round(others.value, 4),
                    "items": share.tried,
                    "tasks": share.tasks,
                },
            )
    yield from _losing_node(facts)


def lease_loss(facts: Facts) -> Iterator[Finding]:
    """Many leases ran out: workers die, freeze, or can't reach the table."""
    limits = facts.thresholds
    mark = facts.memory.mark(facts.now_ms, limits.window_s) or next(iter(facts.memory.marks), None)
    lost = max(0, facts.look.snapshot.lost - mark.lost) if mark is not None else 0
    overdue = len(facts.overdue)
    total = lost + overdue
    if total < limits.losses or total * 5 < len(facts.look.snapshot.leased):
        return
    yield Finding(
        AnomalyKind.LEASE_LOSS,
        WHOLE,
        f"{lost:,} leases were lost within {format_seconds(limits.window_s)}, and {overdue:,} are "
        f"not renewed by their workers; {len(facts.live):,} are",
        "slurmctl status tells how workers died (memory, time limit, node); where none did, they "
        "can't reach the table, or lease.ttl is too short",
        {"lost": lost, "overdue": overdue, "held": len(facts.live)},
    )


def _stretches(facts: Facts) -> list[int]:
    """The first buckets of the recent stretches that may have been bad, the shortest first.

    The shortest holds just enough. Where it began in a bad time, what was before is bad as well:
    so longer ones follow, up to the window, for who looks late.
    """
    timeline, window_s = facts.timeline, facts.thresholds.window_s
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


def _error_finding(facts: Facts, name: str, now: Share, base: float, recent: int) -> Finding:
    timeline = facts.timeline
    seconds = (len(timeline.buckets) - recent) * timeline.width_s
    return Finding(
        AnomalyKind.ERROR_RATE,
        name,
        f"{format_percent(now.value)} of the {now.tried:,} items that ended in the last "
        f"{format_seconds(seconds)} failed with {name}; {format_percent(base)} did before",
        f"see examples with slurmctl errors --class {name}; stop the job with slurmctl pause if "
        "it is not worth going on, and retry the class when it is mended",
        {
            "share": round(now.value, 4),
            "before": round(base, 4),
            "failed": now.failed,
            "items": now.tried,
        },
    )


def _of_one_node(facts: Facts, most: float) -> bool:
    """Whether without one node there is no rise, even if it is too early to call it bad.

    Nodes are compared over a longer time than the rise is seen in, which makes all their shares
    smaller; so a node's is compared with that of the others, and theirs with what is too much.
    """
    for name, share in facts.nodes.items():
        others = _sum(each for other, each in facts.nodes.items() if other != name)
        worse = share.failed and share.value >= SHARE_RATIO * others.value
        if others.tasks and worse and others.value < most:
            return True
    return False


def _losing_node(facts: Facts) -> Iterator[Finding]:
    """Of the leases that were lost lately, one node lost more than falls to it by chance."""
    if (AnomalyKind.LEASE_LOSS, WHOLE) in facts.levels:
        return
    nodes = facts.look.nodes
    losses = Counter(node for _, node in facts.memory.losses if node)
    losses.update(node for row in facts.overdue if (node := node_of(row.owner, nodes)))
    workers = Counter(nodes.values())
    for name, lost in losses.items():
        if lost < facts.thresholds.losses or workers[name] == workers.total():
            continue
        chance = at_least(lost, losses.total(), workers[name] / workers.total())
        if chance <= MOST_CHANCE:
            yield Finding(
                AnomalyKind.BAD_NODE,
                name,
                f"of {losses.total():,} leases that were lost, or are not renewed, {lost:,} were "
                f"held on node {name}, where {workers[name]:,} of {workers.total():,} workers are",
                _node_advice(name),
                {"lost": lost, "of": losses.total(), "chance": round(chance, 6)},
            )


def _node_advice(name: str) -> str:
    return (
        f"keep workers off it with slurm.exclude: {name}, tell the cluster's staff, and retry "
        "what failed there"
    )


def _sum(shares: Iterator[Share]) -> Share:
    total = Share()
    for each in shares:
        total += each
    return total


def no_progress(facts: Facts) -> Iterator[Finding]:
    """Tasks are leased and given back again and again, and none of their items ends."""
    snapshot = facts.look.snapshot
    rows = (*snapshot.leased, *snapshot.given_back)
    vain = {row.task: count for row in rows if (count := _given_back(facts, row)) >= _VAIN_LEASES}
    if not vain:
        return
    worst = max(vain, key=lambda task: vain[task])
    yield Finding(
        AnomalyKind.NO_PROGRESS,
        WHOLE,
        f"task {worst} was leased and given back {vain[worst]:,} times, and none of its items has "
        f"ended; tasks like it: {len(vain):,}",
        "see why workers give it back (slurmctl logs): an item takes longer than a worker has "
        "(slurm.time, preemption), or the nodes' clocks jump",
        {"tasks": len(vain), "leases": vain[worst]},
    )


def _given_back(facts: Facts, row: TaskRow) -> int:
    """How often a task was given back, as far as it is sure, where no item of it has ended."""
    if row.items_ok or row.items_failed or row.checkpoint:
        return 0
    lease = facts.look.lease
    held = int(row.state is TaskState.LEASED)
    # A task that was reopened has forgotten its tries and lost leases of before.
    forgotten = row.reopened * (lease.max_tries + lease.max_lost)
    return row.attempt - held - row.lost - row.tries - len(row.crashes) - forgotten

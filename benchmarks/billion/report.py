"""The results of a simulated job, as numbers and as Markdown."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from airflow_slurm_provider.coordinator.costs.prices import PRICES
from airflow_slurm_provider.coordinator.planning.planner import SEGMENT_ITEMS
from benchmarks.billion.fleet import Fleet, Scenario
from slurm_worker.backends.request_counter import RequestKind

_RECOVERED = 0.95
_BEFORE_S = 60.0
#: The columns of the tables.
_PREEMPTION = (
    "half of the workers",
    "efficiency",
    "recovered after",
    "last task leased again after",
    "work done twice",
    "leases taken over",
    "extra requests",
)
_SIZES = (
    "items",
    "workers",
    "bundle",
    "shards",
    "tasks",
    "makespan",
    "efficiency",
    "planning",
    "dollars",
    "dollars per million items",
)
_LOAD = (
    "job",
    "requests per task",
    "read units per task",
    "heartbeats per second",
    "busiest partition",
    "busiest key",
    "throttled",
    "claim p99",
)
_SETTINGS = (
    "changed setting",
    "efficiency",
    "requests per task",
    "read units per task",
    "refused claims",
    "throttled",
    "heartbeats per second",
    "dollars per million items",
)


@dataclass(frozen=True)
class Outcome:
    """One simulated job.

    Args:
        makespan_s: from the job's opening to its last task.
        plan_s: before that, writing the rows with 32 threads.
        ideal_s: of the makespan, were there nothing to coordinate.
        claim_p99_s: of looking for a task, leasing it and nothing else.
        refused: refused claims for each task.
        partition_writes: of the busiest partition in its busiest second; likewise
            `partition_reads` in units, and `key_writes` and `key_reads` of the busiest key.
        throttled: requests that were throttled, by kind; `given_up` of them for good.
        heartbeats_per_s: over the makespan.
        again_s: work that was done more than once, in worker seconds.
        dollars: planner's and workers' requests at list price.
        cpu_s: what the simulation took.
    """

    name: str
    scenario: dict[str, Any]
    tasks: int
    done: int
    makespan_s: float
    plan_s: float
    ideal_s: float
    claim_p99_s: float
    refused: float
    requests: dict[str, int]
    read_units: float
    partitions: int
    partition_writes: float
    partition_reads: float
    key_writes: tuple[float, str]
    key_reads: tuple[float, str]
    throttled: dict[str, int]
    given_up: int
    workers_lost: int
    heartbeats_per_s: float
    stolen: int
    again_s: float
    dollars: float
    recovered_s: float | None
    retaken_s: float | None
    cpu_s: float = field(default=0.0)

    @property
    def efficiency(self) -> float:
        """The ideal makespan against this one."""
        return self.ideal_s / self.makespan_s


def simulate(name: str, scenario: Scenario) -> Outcome:
    """Run a scenario and sum it up.

    Raises:
        AssertionError: if a task was lost or committed twice.
    """
    began = time.process_time()
    fleet = Fleet(scenario)
    tally = fleet.run()
    services, table = fleet.services, fleet.services.table
    assert tally.done == scenario.tasks, f"{name}: {tally.done} of {scenario.tasks} tasks"
    assert fleet.unfinished() == 0, f"{name}: {fleet.unfinished()} rows are not done"
    needed = sum(map(fleet.took, range(scenario.tasks))) if scenario.rate is None else 0.0
    claims = sorted(tally.claim_s)
    statements = services.statements
    makespan_s = tally.done_at - tally.open_at
    return Outcome(
        name=name,
        scenario=asdict(scenario),
        tasks=scenario.tasks,
        done=tally.done,
        makespan_s=makespan_s,
        plan_s=tally.open_at,
        ideal_s=scenario.ideal_s,
        claim_p99_s=claims[int(0.99 * len(claims))],
        refused=statements["claim refused"] / scenario.tasks,
        requests=dict(services.requests),
        read_units=services.read_units,
        partitions=len(table.partitions),
        partition_writes=max(each.writes.most for each in table.partitions),
        partition_reads=max(each.reads.most for each in table.partitions),
        key_writes=max((writes.most, pk) for pk, (writes, _) in table.keys.items()),
        key_reads=max((reads.most, pk) for pk, (_, reads) in table.keys.items()),
        throttled=dict(services.throttled),
        given_up=services.given_up,
        workers_lost=tally.left,
        heartbeats_per_s=statements["heartbeat"] / makespan_s,
        stolen=tally.stolen,
        again_s=max(0.0, tally.worked_s - needed) if scenario.rate is None else 0.0,
        dollars=dollars_of(services.requests, services.read_units, scenario.items),
        recovered_s=_recovered_s(tally.busy, tally.preempted_at),
        retaken_s=tally.last_steal_at - tally.preempted_at if tally.stolen else None,
        cpu_s=time.process_time() - began,
    )


def dollars_of(requests: Mapping[str, int], read_units: float, items: int) -> float:
    """At list price: writes and read units as they were used, objects by the request."""
    puts = requests.get("s3_put", 0) + math.ceil(items / SEGMENT_ITEMS)
    return (
        requests.get("dynamo_write", 0) * PRICES[RequestKind.DYNAMO_WRITE]
        + read_units * PRICES[RequestKind.DYNAMO_GET]
        + puts * PRICES[RequestKind.S3_PUT]
        + requests.get("s3_get", 0) * PRICES[RequestKind.S3_GET]
    ) / 1e6


def _recovered_s(busy: list[tuple[float, int]], at: float) -> float | None:
    """Seconds from a preemption until nearly as many workers run items as before it."""
    before = [count for when, count in busy if at - _BEFORE_S <= when < at]
    if not at or not before:
        return None
    level = _RECOVERED * sum(before) / len(before)
    after = ((when, count) for when, count in busy if when > at + 1)
    return next((when - at for when, count in after if count >= level), None)


# --- Markdown ---------------------------------------------------------------------


def sizes_table(found: Iterable[Outcome]) -> list[str]:
    """A line for each size."""
    return [
        *_head(_SIZES),
        *(
            f"| {each.scenario['items']:,} | {each.scenario['workers']:,} "
            f"| {each.scenario['bundle']:,} | {each.scenario['shards']} "
            f"| {each.tasks:,} | {each.makespan_s:,.0f} s | {each.efficiency:.1%} "
            f"| {each.plan_s:,.0f} s | {each.dollars:,.2f} "
            f"| {each.dollars / each.scenario['items'] * 1e6:.3f} |"
            for each in found
        ),
    ]


def load_table(found: Iterable[Outcome]) -> list[str]:
    """The load on the services."""
    return [
        *_head(_LOAD),
        *(
            f"| {each.name} | {sum(each.requests.values()) / each.tasks:.1f} "
            f"| {each.read_units / each.tasks:.1f} | {each.heartbeats_per_s:,.0f} "
            f"| {each.partition_writes:,.0f} writes, {each.partition_reads:,.0f} read units "
            f"| {each.key_writes[0]:,.0f} writes (`{short(each.key_writes[1])}`), "
            f"{each.key_reads[0]:,.0f} read units (`{short(each.key_reads[1])}`) "
            f"| {share(each)} | {each.claim_p99_s * 1000:,.0f} ms |"
            for each in found
        ),
    ]


def settings_table(found: Iterable[Outcome]) -> list[str]:
    """One setting changed at a time."""
    return [
        *_head(_SETTINGS),
        *(
            f"| {each.name} | {each.efficiency:.1%} "
            f"| {sum(each.requests.values()) / each.tasks:.1f} "
            f"| {each.read_units / each.tasks:.1f} | {each.refused:.2%} | {share(each)} "
            f"| {each.heartbeats_per_s:,.1f} "
            f"| {each.dollars / each.scenario['items'] * 1e6:.3f} |"
            for each in found
        ),
    ]


def preemption_table(found: Sequence[Outcome]) -> list[str]:
    """Half of the workers are preempted at once; in the first line's job none is."""
    lines = _head(_PREEMPTION)
    base = sum(found[0].requests.values())
    for each in found:
        work_s = each.scenario["items"] * each.scenario["item_s"]
        lines.append(
            f"| {each.name} | {each.efficiency:.1%} | {seconds(each.recovered_s)} "
            f"| {seconds(each.retaken_s)} | {each.again_s / work_s:.2%} | {each.stolen:,} "
            f"| {sum(each.requests.values()) / base - 1:+.1%} |"
        )
    return lines


def _head(columns: tuple[str, ...]) -> list[str]:
    return [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]


def share(outcome: Outcome) -> str:
    """Throttled requests against all, and those that the SDK gave up."""
    throttled = sum(outcome.throttled.values())
    if not throttled:
        return "none"
    given_up = f", {outcome.given_up:,} given up" if outcome.given_up else ""
    return f"{throttled:,} ({throttled / sum(outcome.requests.values()):.2%}){given_up}"


def short(pk: str) -> str:
    """A partition key without the job's name."""
    return pk.partition("#")[2].partition("#")[2] or "META and shard cursors"


def seconds(value: float | None) -> str:
    """A time that may not be known."""
    return "" if value is None else f"{value:,.0f} s"

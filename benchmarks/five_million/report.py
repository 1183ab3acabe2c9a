"""The run as Markdown; pure functions of what was seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from airflow_slurm_provider.coordinator.costs.prices import PRICES_OF, REGION, bill_of
from benchmarks.five_million.watching import Seen, share_of

_HEAD = """# Five million items

`make bench-5m` on {machine}: {items:,} items in {tasks:,} tasks of {bundle:,}, {workers} workers.
{kills} processes were killed with `kill -9` during the run ({killed}), and {lost} leases ran out.
Slurm over SSH, S3 (SeaweedFS) and DynamoDB (moto) run on the same cores.

The dataset has {rows:,} rows. Their keys are {same} of the items, each once (checked by a sum of
digests). The workers processed {rate:,.0f} items a second. The handler's code was on a CPU for
{share:.0%} of the time that worker processes ran.
"""
SHARE, COORDINATOR_MB = 0.60, 300.0


@dataclass
class Run:
    """The figures of a run.

    Args:
        moments: seconds since the epoch, by what happened then, in order.
        seen: processes, by kind.
        requests: by whom, then by kind.
        published: rows of the manifest.
        verified: what the last step has told.
    """

    items: int
    tasks: int
    bundle: int
    workers: int
    kills: int
    killed: Counter[str]
    lost: int
    moments: dict[str, float]
    seen: Mapping[str, Seen]
    requests: Mapping[str, Mapping[str, int]]
    published: int
    verified: Mapping[str, Any]
    machine: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of the workers' time, that in which the handler's code was on a CPU."""
        return share_of(self.verified["cpu_s"], self.seen)

    def problems(self) -> list[str]:
        """What was lost, doubled or too much; empty for a run as it should be."""
        found = []
        if self.published != self.items or self.verified["rows"] != self.items:
            found.append(
                f"{self.verified['rows']:,} rows were read and {self.published:,} published of "
                f"{self.items:,} items"
            )
        if not self.verified["same_keys"]:
            found.append("the dataset's keys are not those of the items")
        if self.verified["wrong"]:
            found.append(f"{self.verified['wrong']} sampled rows hold a wrong result")
        if self.killed.total() < self.kills:
            found.append(f"{self.killed.total()} of {self.kills} kills were carried out")
        return found

    def misses(self) -> list[str]:
        """Targets that were not met; nothing is wrong with the data."""
        found = []
        if self.share < SHARE:
            found.append(f"the handler had {self.share:.0%} of the workers' time, of {SHARE:.0%}")
        coordinator = self.seen.get("coordinator", Seen()).peak_mb
        if coordinator > COORDINATOR_MB:
            found.append(f"the coordinator took {coordinator:.0f} of {COORDINATOR_MB:.0f} MB")
        return found


def phases(moments: Mapping[str, float]) -> list[tuple[str, float]]:
    """Seconds of each phase, named by the moment that ends it."""
    ordered = sorted(moments.items(), key=lambda each: each[1])
    return [(name, at - before) for (_, before), (name, at) in pairwise(ordered)]


def markdown(run: Run) -> str:
    """The whole report."""
    total = sum((Counter(each) for each in run.requests.values()), Counter[str]())
    bill = bill_of(total)
    work_s = run.moments["last task done"] - run.moments["planned and submitted"]
    same = "those" if run.verified["same_keys"] else "**not** those"
    lines = [
        _HEAD.format(
            machine=run.machine,
            items=run.items,
            tasks=run.tasks,
            bundle=run.bundle,
            workers=run.workers,
            kills=run.killed.total(),
            killed=_list(run.killed),
            lost=run.lost,
            rows=run.verified["rows"],
            same=same,
            rate=run.items / work_s,
            share=run.share,
        ),
        "| phase, until | seconds |",
        "| --- | --- |",
        *(f"| {name} | {seconds:,.0f} |" for name, seconds in phases(run.moments)),
        "",
        "| process | count | peak memory of one process | total seconds of all |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {each.processes} | {each.peak_mb:.0f} MB | {each.seconds:,.0f} |"
            for name, each in sorted(run.seen.items())
        ),
        "",
        "| requests | " + " | ".join(run.requests) + " | dollars |",
        "| --- |" + " --- |" * (len(run.requests) + 1),
        *(
            f"| `{kind}` | "
            + " | ".join(f"{each.get(kind, 0):,}" for each in run.requests.values())
            + f" | {dollars:.4f} |"
            for kind, dollars in bill.by_kind.items()
        ),
        "",
        f"${bill.dollars:.2f} at the list prices of {REGION} of {PRICES_OF}. Sizes in the bucket: "
        + ", ".join(
            f"{name} {size / 2**20:,.1f} MB" for name, size in sorted(run.verified["disk"].items())
        )
        + ".",
    ]
    for line in (*run.problems(), *run.misses(), *run.notes):
        lines += ["", f"**{line}**"]
    return "\n".join(lines) + "\n"


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}s" for name, count in sorted(counts.items())) or "none"

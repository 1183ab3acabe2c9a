"""What coordinating a million items costs at list price: ours, AWS Step Functions, AWS Batch.

Pure functions. Ours is counted as `slurmctl plan` counts it, by the coordinator's own bills and
prices; S3 requests of the others are priced by the same table. Compute is in none of them: the
handler runs somewhere in each, on nodes, in Lambda or on EC2, and takes the same time there.
Storage, logs, traffic, free tiers and discounts are in none either.

What a bundle of items takes, where nothing fails:

| way | a bundle | source |
| --- | --- | --- |
| ours | rows planned, claimed, completed; slice, rows, errors and marker; merged | prices.py |
| Distributed Map, Standard | a transition for the child, one for its only state; 1 PUT | 1, 2 |
| Distributed Map, Express | a transition for the child, 1 request, its duration; 1 PUT | 1, 2 |
| Batch array | S3 only: 1 GET of the input, 1 PUT of the results | 5, 6 |

The PUT is the least that leaves a bundle's results on S3 where they outgrow a state's output of
256 KiB; nobody merges them there. A map's child gets its items as its input, from the map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from airflow_slurm_provider.coordinator.costs.prices import (
    PRICES,
    PRICES_OF,
    REGION,
    merging_bill,
    planning_bill,
    working_bill,
)
from slurm_worker.backends.request_counter import RequestKind

ITEMS = 1_000_000
BUNDLES = (1, 100, 500, 1_000)

#: Dollars of one, in us-east-1; the sources say where each stands.
TRANSITION = 0.025 / 1_000
EXPRESS_REQUEST = 1.00 / 1_000_000
#: The dearest step of the scale: the first thousand GB-hours of a month.
EXPRESS_GB_S = 0.06 / 3_600
#: What an Express workflow without Map states inside is billed for: one chunk of memory.
_EXPRESS_GB = 64 / 1_024
_EXPRESS_STEP_S = 0.1
#: An Express workflow is ended after this time.
EXPRESS_LIMIT_S = 300.0
#: Of the parent: the Map state itself.
_PARENT_TRANSITIONS = 1
#: Children of an array job.
ARRAY_LIMIT = 10_000

SOURCES_OF = "2026-11-25"
_AWS = "https://aws.amazon.com"
_DOCS = "https://docs.aws.amazon.com"
#: Addresses, and what was read there.
SOURCES = {
    f"{_AWS}/step-functions/pricing/": (
        "$0.025 per 1,000 transitions; Express $1.00 per million requests and $0.06 per GB-hour, "
        "in steps of 100 ms and 64 MB"
    ),
    f"{_DOCS}/step-functions/latest/dg/concepts-transitions.html": (
        "a transition for each child that a Distributed Map starts"
    ),
    f"{_DOCS}/step-functions/latest/dg/cost-opt-exp-workflows.html": (
        "Express workflows end within five minutes, and run at least once"
    ),
    f"{_DOCS}/step-functions/latest/dg/service-quotas.html": (
        "256 KiB of input or output of a state"
    ),
    f"{_AWS}/batch/pricing/": "no additional charge, according to AWS's guides that cite this page",
    f"{_DOCS}/eventbridge/latest/pipes-reference/API_BatchArrayProperties.html": (
        "2 to 10,000 children of an array"
    ),
    f"{_AWS}/dynamodb/pricing/on-demand/": "as in coordinator/costs/prices.py",
    f"{_AWS}/s3/pricing/": "as in coordinator/costs/prices.py",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A job as far as its requests depend on it.

    Args:
        items: how many.
        bundle: items of a task, a child workflow, or a child of an array.
        item_s: seconds that an item takes; for heartbeats, and for Express.
        workers: of ours.
    """

    items: int = ITEMS
    bundle: int = 500
    item_s: float = 0.06
    workers: int = 100

    @property
    def bundles(self) -> int:
        """How many bundles there are."""
        return math.ceil(self.items / self.bundle)

    @property
    def bundle_s(self) -> float:
        """Seconds that a whole bundle takes, an item after the other."""
        return min(self.items, self.bundle) * self.item_s


def ours(shape: Shape) -> float:
    """Dollars of planning, working and merging, with exactly one committed result a bundle."""
    bill = (
        planning_bill(shape.bundles, shape.items)
        + working_bill(shape.bundles, shape.workers, busy_s=shape.items * shape.item_s)
        + merging_bill(shape.bundles)
    )
    return bill.dollars


def map_standard(shape: Shape) -> float:
    """Dollars of a Distributed Map whose children are Standard workflows of one state."""
    transitions = _PARENT_TRANSITIONS + 2 * shape.bundles
    return transitions * TRANSITION + _puts(shape.bundles)


def map_express(shape: Shape) -> float | None:
    """Dollars of a Distributed Map whose children are Express workflows of one state.

    None where a child would not end in time.
    """
    if shape.bundle_s > EXPRESS_LIMIT_S:
        return None
    # Rounded first, so that 6.000000000000001 s do not take one step more than 6 s.
    steps = math.ceil(round(shape.bundle_s / _EXPRESS_STEP_S, 6))
    duration = shape.bundles * steps * _EXPRESS_STEP_S * _EXPRESS_GB * EXPRESS_GB_S
    transitions = _PARENT_TRANSITIONS + shape.bundles
    return (
        transitions * TRANSITION + shape.bundles * EXPRESS_REQUEST + duration + _puts(shape.bundles)
    )


def batch_arrays(shape: Shape) -> float:
    """Dollars of S3 requests of AWS Batch's children; Batch charges for compute only."""
    return _puts(shape.bundles) + shape.bundles * PRICES[RequestKind.S3_GET] / 1e6


def arrays(shape: Shape) -> int:
    """How many array jobs AWS Batch needs."""
    return math.ceil(shape.bundles / ARRAY_LIMIT)


def _puts(bundles: int) -> float:
    return bundles * PRICES[RequestKind.S3_PUT] / 1e6


WAYS: Mapping[str, Callable[[Shape], float | None]] = {
    "this project": ours,
    "Step Functions Distributed Map, Standard children": map_standard,
    "Step Functions Distributed Map, Express children": map_express,
    "AWS Batch array jobs": batch_arrays,
}


def table() -> list[str]:
    """Dollars per million items as lines of Markdown."""
    shapes = [Shape(bundle=bundle) for bundle in BUNDLES]
    lines = [
        "| dollars per million items, bundles of | " + " | ".join(f"{b:,}" for b in BUNDLES) + " |",
        "| --- |" + " --- |" * len(BUNDLES),
    ]
    for name, dollars in WAYS.items():
        cells = [_cell(dollars(each)) for each in shapes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    counts = " | ".join(f"{arrays(each):,}" for each in shapes)
    return [*lines, f"| array jobs that AWS Batch needs | {counts} |"]


def _cell(dollars: float | None) -> str:
    if dollars is None:
        return "takes over 5 min"
    return f"{dollars:,.2f}" if dollars >= 1 else f"{dollars:.3f}"


def section() -> list[str]:
    """The table, its assumptions and its sources, as lines of Markdown."""
    shape = Shape()
    sources = [f"{n}. {url}: {what}" for n, (url, what) in enumerate(SOURCES.items(), 1)]
    basis = (
        f"For {shape.items:,} items of {shape.item_s} s, in this project with {shape.workers}",
        f"workers. List prices of {REGION}: of {PRICES_OF} for DynamoDB and S3, the others from",
        f"archived copies of these pages, read on {SOURCES_OF}:",
    )
    return [*table(), "", *basis, "", *sources]


def main() -> None:
    """Print the section."""
    print("\n".join(section()))


if __name__ == "__main__":
    main()

"""The dataset: what a perfect machine would have made of the same ends of items."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tests.simulator.checks.rows import Violation
from tests.simulator.world import World


def read_manifest(world: World) -> dict[str, Any] | None:
    """The job's manifest, if there is one."""
    data = world.objects.objects.get(world.paths.manifest)
    return None if data is None else json.loads(data)


def check_dataset(world: World, final: Mapping[str, str], items: int) -> None:
    """Each item is once in the dataset, or once among the failures with its class.

    Args:
        world: where the dataset is.
        final: how each item ended; see `Outcomes.final`.
        items: of the input.

    Raises:
        Violation: naming items.
    """
    manifest = read_manifest(world)
    if manifest is None:
        raise Violation("no dataset was published")
    rows, failures = (_read(world, manifest[name]) for name in ("files", "errors"))
    found = Counter(row["_key"] for row in [*rows, *failures])
    _same(found, Counter(f"k{number}" for number in range(items)), "in the dataset")
    for row in rows:
        number = int(row["_key"][1:])
        if (row["n"], row["square"]) != (number, number * number):
            raise Violation(f"the dataset has {row}")
    ends = {row["_key"]: "" for row in rows} | {row["_key"]: row["class"] for row in failures}
    wrong = {key: (ends[key], end) for key, end in final.items() if ends[key] != end}
    if wrong:
        raise Violation(f"items of the dataset, their ends there and in their parts: {wrong}")
    failed = Counter(row["class"] for row in failures)
    if (manifest["items"], manifest["ok"], manifest["failed"]) != (items, len(rows), failed):
        raise Violation(f"the manifest does not count what its files have: {manifest}")


def _read(world: World, files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    bodies = (world.objects.objects[file["key"]] for file in files)
    return [row for body in bodies for row in pq.read_table(io.BytesIO(body)).to_pylist()]


def _same(found: Counter[str], expected: Counter[str], where: str) -> None:
    if found != expected:
        raise Violation(
            f"{where}: items lost {sorted(expected - found)}, "
            f"items twice or more {sorted(found - expected)}"
        )

"""Kill -9 of the aggregator at random points, restarted each time.

python -m tests.chaos.aggregation [--points 30] [--seed 1]

The parts of a job are in a folder. An aggregator is killed and another one finishes. The dataset
that it publishes is compared, byte for byte, with the dataset of an undisturbed aggregator.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.merging import PATHS, Case, make
from slurm_worker.backends.local import FolderObjects

CASE = Case(rows=60_000, parts=60)
LAYOUTS = {"plain": {}, "partitioned": {"partition_by": ["city"], "sort_by": ["n"]}}


@dataclass(frozen=True)
class Found:
    """What was seen at one point."""

    layout: str
    after_s: float
    #: Files that the killed run had left.
    left: int
    same: bool


def run(points: int, seed: int, folder: Path) -> list[Found]:
    """Kill at so many points, half of them in each layout."""
    make(CASE, folder)
    rng = random.Random(seed)
    found = []
    for layout in LAYOUTS:
        _forget(folder)
        began = time.monotonic()
        _finish(_start(folder, layout))
        took = time.monotonic() - began
        expected = _published(folder)
        for _ in range(points // len(LAYOUTS)):
            _forget(folder)
            after_s = rng.uniform(0, took)
            child = _start(folder, layout)
            time.sleep(after_s)
            child.send_signal(signal.SIGKILL)
            child.wait()
            left = len(_data_files(folder))
            _finish(_start(folder, layout))
            found.append(Found(layout, after_s, left, _published(folder) == expected))
    return found


def _start(folder: Path, layout: str) -> subprocess.Popen[str]:
    """An aggregator that has been started, and not yet begun."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.aggregation", "--child", str(folder), layout],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def _finish(child: subprocess.Popen[str]) -> None:
    child.communicate()
    assert child.returncode == 0, "the aggregator failed"


def _data_files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / PATHS.dataset).rglob("*.parquet")
    }


def _published(folder: Path) -> dict[str, str]:
    """The files of the manifest by their names, with what is in them."""
    there = _data_files(folder)
    manifest = json.loads((folder / PATHS.manifest).read_bytes())
    files = {each["key"]: each["sha256"] for each in manifest["files"]}
    assert files.items() <= there.items()
    assert files == {k: v for k, v in there.items() if k.startswith(manifest["folder"])}
    return {key.removeprefix(manifest["folder"]): digest for key, digest in files.items()}


def _forget(folder: Path) -> None:
    for each in (PATHS.dataset, PATHS.errors):
        shutil.rmtree(folder / each, ignore_errors=True)


def _aggregate(folder: Path, layout: str) -> None:
    from slurm_worker import aggregate

    print("ready", flush=True)
    options = aggregate.AggregateOptions(
        schema=CASE.schema, rows_per_file=10_000, row_group_size=5_000, **LAYOUTS[layout]
    )
    expected = [aggregate.RoundSummary(0, CASE.parts, CASE.rows)]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        aggregate.aggregate(
            FolderObjects(folder), PATHS, expected, options, Path(scratch), lambda _: None
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=30)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(2), "big"))
    parser.add_argument("--child", nargs=2)
    arguments = parser.parse_args()
    if arguments.child:
        _aggregate(Path(arguments.child[0]), arguments.child[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        found = run(arguments.points, arguments.seed, Path(folder))
    for each in found:
        print(
            f"{each.layout}: killed after {1000 * each.after_s:.0f} ms, {each.left} files left, "
            f"{'the same' if each.same else 'DIFFERENT'}"
        )
    different = sum(not each.same for each in found)
    print(f"seed {arguments.seed}: {len(found)} points, {different} different")
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()

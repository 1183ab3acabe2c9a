"""How long the shipped zipapp and `slurmctl --help` take to start.

python -m benchmarks.startup [--short]

``first`` starts with an empty temporary folder, so it unpacks and compiles. ``warm`` finds both
done, like every worker on a node except the first. Each measurement ends when a worker has imported
all that it needs (``check``). The baseline is the same with installed packages. For `--help`, each
command is measured. Its baseline is a time that a person at a prompt does not notice.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from airflow_slurm_provider.cli.app import COMMANDS
from benchmarks.engine import Figure
from slurm_worker import zipapp

#: A person notices help that takes longer.
_NOTICED_S = 0.150


def _timed(command: list[str], temporary: Path) -> float:
    environment = {"PATH": os.defpath, "TMPDIR": str(temporary)}
    began = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def figures(*, short: bool) -> list[Figure]:
    return [*_of_worker(short=short), *_of_help(short=short)]


def _of_help(*, short: bool) -> list[Figure]:
    times: dict[str, list[float]] = {"": [], **{name: [] for name in COMMANDS}}
    slurmctl = str(Path(sys.executable).with_name("slurmctl"))
    for turn in range(2 if short else 8):
        for name, of_name in times.items():
            took = _timed([slurmctl, *([name] if name else []), "--help"], Path(os.curdir))
            if turn:
                of_name.append(took)
    median = {name: statistics.median(each) for name, each in times.items()}
    slowest = max(COMMANDS, key=lambda name: median[name])
    return [
        Figure(
            f"slurmctl {name} --help".replace("  ", " "),
            f"{median[name] * 1000:.0f} ms",
            f"{_NOTICED_S * 1000:.0f} ms",
            median[name] / _NOTICED_S,
            1.0,
            at_least=False,
        )
        for name in ("", slowest)
    ]


def _of_worker(*, short: bool) -> list[Figure]:
    times: dict[str, list[float]] = {"installed": [], "version": [], "first": [], "warm": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        worker = folder / "worker.pyz"
        worker.write_bytes(zipapp.build()[1])
        zipped = [sys.executable, "-I", "-S", str(worker)]
        # In turns, so that other work on the machine affects all of them.
        for turn in range(3 if short else 12):
            empty = Path(tempfile.mkdtemp(dir=folder))
            first = _timed([*zipped, "check"], empty)
            warm = _timed([*zipped, "check"], empty)
            version = _timed([*zipped, "--version"], empty)
            installed = _timed([sys.executable, "-m", "slurm_worker", "check"], empty)
            shutil.rmtree(empty)
            if turn:  # the first one finds nothing in the kernel's caches
                for kind, took in zip(times, (installed, version, first, warm), strict=True):
                    times[kind].append(took)
    median = {kind: statistics.median(each) for kind, each in times.items()}
    return [
        Figure(
            f"start of worker.pyz: {kind}",
            f"{median[kind] * 1000:.0f} ms",
            f"{median['installed'] * 1000:.0f} ms, installed packages",
            median[kind] / median["installed"],
            target,
            at_least=False,
        )
        for kind, target in (("version", 0.25), ("first", 4.0), ("warm", 1.25))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    print(json.dumps([asdict(each) for each in figures(short=parser.parse_args().short)]))


if __name__ == "__main__":
    main()

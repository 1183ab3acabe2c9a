"""``python -m tests.chaos [--short] [SEED…]``: rounds of chaos on the stack that is up."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from slurm_worker.errors import SlurmWorkerError
from tests.chaos.chaos import ChaosError, run_round
from tests.chaos.report import Report, never_provoked, table
from tests.chaos.sizes import FULL, SHORT, Size
from tests.stack.airflow_api import AirflowApiError
from tests.stack.demo import DemoError, read_environment
from tests.stack.settings import StackError


def main() -> int:
    """Run a round per seed; 1 if one of them failed, or if none had some kind of fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("seeds", nargs="*", type=int, metavar="SEED", help="default: a random one")
    parser.add_argument("--short", action="store_true", help="the round that make test runs")
    arguments = parser.parse_args()
    seeds = arguments.seeds or [random.SystemRandom().randrange(1_000_000)]
    # The stack is left as it was, however the run ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        os.environ.update(read_environment())
    except DemoError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    size, began = SHORT if arguments.short else FULL, time.monotonic()
    reports = [report for seed in seeds if (report := _run(seed, size)) is not None]
    missing = never_provoked(reports, size)
    print("\n" + "\n".join(table(reports, size)))
    print(f"{len(reports)} of {len(seeds)} rounds ended, in {time.monotonic() - began:.0f} s")
    for report in reports:
        print(report.lines()[0])
    for kind in missing:
        print(f"chaos: no round had the fault: {kind}", file=sys.stderr)
    failed = len(reports) < len(seeds) or any(report.problems for report in reports)
    return 1 if failed or missing else 0


def _run(seed: int, size: Size) -> Report | None:
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
    print(f"chaos: seed {seed}; each injected fault is in {folder}/faults.jsonl", flush=True)
    try:
        report = run_round(size, seed, folder, os.environ, lambda text: print(text, flush=True))
    except (ChaosError, StackError, AirflowApiError, SlurmWorkerError, LookupError) as error:
        print(f"chaos: seed {seed}: {error}", file=sys.stderr)
        return None
    print("\n".join(report.lines()), flush=True)
    return report


if __name__ == "__main__":
    sys.exit(main())

"""``python -m tests.chaos [--short] [SEED…]``: rounds of chaos on the stack that is up."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

from slurm_worker.errors import SlurmWorkerError
from tests.chaos.chaos import FULL, SHORT, ChaosError, run_round
from tests.stack.demo import DemoError, read_environment
from tests.stack.settings import StackError


def main() -> int:
    """Run a round per seed; 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("seeds", nargs="*", type=int, metavar="SEED", help="default: a random one")
    parser.add_argument("--short", action="store_true", help="the round that make test runs")
    arguments = parser.parse_args()
    seeds = arguments.seeds or [random.SystemRandom().randrange(1_000_000)]
    try:
        os.environ.update(read_environment())
    except DemoError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    results = [_run(seed, short=arguments.short) for seed in seeds]
    return 0 if all(results) else 1


def _run(seed: int, *, short: bool) -> bool:
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-"))
    print(f"chaos: seed {seed}; each injected fault is in {folder}/faults.jsonl", flush=True)
    try:
        report = run_round(
            SHORT if short else FULL, seed, folder, os.environ, lambda text: print(text, flush=True)
        )
    except (ChaosError, StackError, SlurmWorkerError, LookupError) as error:
        print(f"chaos: seed {seed}: {error}", file=sys.stderr)
        return False
    print("\n".join(report.lines()), flush=True)
    return not report.problems


if __name__ == "__main__":
    sys.exit(main())

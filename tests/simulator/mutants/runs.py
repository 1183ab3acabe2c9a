"""One run of a seed, broken by a mutant or only watched."""

from __future__ import annotations

import logging
from enum import Enum
from typing import TypeAlias

from tests.simulator.backfill import Backfill
from tests.simulator.checks.rows import Violation
from tests.simulator.limits import LimitSimulation
from tests.simulator.run import Simulation
from tests.simulator.stores.rows import WatchedRows

Run: TypeAlias = Simulation | Backfill | LimitSimulation


class Kind(Enum):
    """The runs of a seed."""

    WORKERS = "workers"
    BACKFILL = "backfill"
    LIMIT = "limit"

    def run(self, seed: int) -> Run:
        """A run, not begun."""
        return _RUNS[self](seed)


def table_of(run: Run) -> WatchedRows:
    """A run's table."""
    return run.world.rows if isinstance(run, Backfill) else run.rows


def what_breaks(run: Run) -> str:
    """Run it, and say which promise was broken; empty for none.

    What breaks may also raise an error that no simulated process expects: nobody can overlook it.
    """
    # The commands warn of a Slurm that does not answer.
    logging.disable(logging.WARNING)
    try:
        run.run()
    except Violation as violation:
        return str(violation)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        logging.disable(logging.NOTSET)
    return ""


_RUNS: dict[Kind, type[Run]] = {
    Kind.WORKERS: Simulation,
    Kind.BACKFILL: Backfill,
    Kind.LIMIT: LimitSimulation,
}

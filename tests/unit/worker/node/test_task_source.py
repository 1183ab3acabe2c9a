"""The next task is leased when the running one is nearly done, and not before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from slurm_worker.node.activity import Activity
from slurm_worker.node.attempts import Attempt, Attempts
from slurm_worker.node.heartbeat import Heartbeat
from slurm_worker.node.task_source import TaskSource
from slurm_worker.results.journal import Outcome
from tests.unit.world import World, numbered


def test_a_resumed_task_is_not_taken_for_nearly_done(tmp_path: Path) -> None:
    waits: list[float] = []

    def ran(seconds: float) -> bool:
        waits.append(seconds)
        return True

    context = World(tmp_path).context()
    heartbeat = Heartbeat(context)
    source = TaskSource(context, Activity(context), Attempts(context, heartbeat))
    unused: Any = None
    attempt = Attempt(unused, numbered(1000), unused, [Outcome(0, "", 900, "", items=900)])
    journal: Any = SimpleNamespace(ok=900, failed=0)
    assert source.lease_ahead(attempt, journal, SimpleNamespace(wait=ran)) is None  # type: ignore[arg-type]
    heartbeat.close()
    assert len(waits) == 1, "a hundred items are left, of which none has been timed"

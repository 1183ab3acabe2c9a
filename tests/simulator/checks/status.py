"""What `status` says is what the rows and the committed parts say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.progress import read_progress
from slurm_worker.protocol.keys import TaskId
from slurm_worker.protocol.tasks import TaskRow
from tests.simulator.checks.outcomes import Outcomes
from tests.simulator.checks.rows import Violation
from tests.simulator.world import JOB, World


def check_status(
    world: World,
    services: Services,
    rows: Mapping[TaskId, TaskRow],
    outcomes: Outcomes,
    items: int,
) -> None:
    """Tasks by state, items, successes, failures by class, rows and rounds.

    Raises:
        Violation: naming what differs.
    """
    final, job = outcomes.final(), world.jobs.get()
    ok = sum(not end for end in final.values())
    expected: dict[str, object] = {
        "tasks": dict(Counter(row.state.value for row in rows.values())),
        "items": items,
        "ok": ok,
        "failed": dict(Counter(end for end in final.values() if end)),
        "rows": ok,
        "pending": 0,
        # A retry that was cut off for good has planned a round that is not open.
        "rounds": job.rounds,
        "task_errors": {},
    }
    progress = read_progress(services, JOB)
    shown = {name: getattr(progress, name) for name in expected}
    shown["tasks"] = {state: count for state, count in progress.tasks.items() if count}
    if shown != expected:
        wrong = {
            name: (shown[name], expected[name]) for name in shown if shown[name] != expected[name]
        }
        raise Violation(f"status shows, and the rows have: {wrong}")

"""Where the time of a DAG run went: its task instances, and the job's own phases, drawn as text.

The phases come from the job's rows (when it was planned and submitted) and from the
`.done` markers (when its first task began and its last one ended).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.protocol.keys import JobId, parse_task_id
from tests.stack.airflow_api import DagRun

_WIDTH = 48


@dataclass(frozen=True, slots=True)
class Bar:
    """A span of time, in seconds since the epoch."""

    label: str
    start: float
    end: float
    mark: str = "█"


def bars_of_run(run: DagRun) -> list[Bar]:
    """Each task of the run, from its first start to its end."""
    return [
        Bar(task.task_id, task.start, task.end)
        for task in run.tasks
        if task.start is not None and task.end is not None
    ]


def bars_of_job(services: Services, job_id: str) -> list[Bar]:
    """The job's phases: plan, submit, and per round the start of workers and their work."""
    jobs = services.jobs(JobId(job_id))
    bars = [
        Bar(f"plan round {each.number}", each.created_ms / 1000, each.opened_ms / 1000, "▒")
        for each in jobs.rounds()
        if each.opened_ms
    ]
    submitted: dict[int, float] = {}
    for each in jobs.submissions():
        if each.submitted_ms:
            end = each.submitted_ms / 1000
            submitted.setdefault(each.round_no, end)
            bars.append(Bar(f"sbatch {each.label}", each.intent_ms / 1000, end, "▒"))
    work: dict[int, tuple[float, float]] = {}
    for marker in services.store(JobId(job_id)).markers():
        round_no, _ = parse_task_id(marker.task)
        start, end = work.get(round_no, (marker.started, marker.finished))
        work[round_no] = (min(start, marker.started), max(end, marker.finished))
    for round_no, (start, end) in sorted(work.items()):
        if round_no in submitted:
            bars.append(Bar(f"start workers {round_no}", submitted[round_no], start, "░"))
        bars.append(Bar(f"work round {round_no}", start, end, "▓"))
    return bars


def waiting_between(run: DagRun) -> float:
    """Seconds of the run in which none of its tasks was under way."""
    spans = sorted((bar.start, bar.end) for bar in bars_of_run(run))
    reached = run.triggered if run.triggered is not None else run.start
    waited = 0.0
    for start, end in spans:
        reached = start if reached is None else reached
        waited += max(0.0, start - reached)
        reached = max(reached, end)
    return waited


def draw(bars: Sequence[Bar], origin: float) -> list[str]:
    """A line per bar, in order of their start: label, start, length, and where it stands."""
    if not bars:
        return []
    scale = max(max(bar.end for bar in bars) - origin, 0.001)
    lines = []
    for bar in sorted(bars, key=lambda each: (each.start, -each.end)):
        left = min(_WIDTH - 1, max(0, round((bar.start - origin) / scale * _WIDTH)))
        right = min(_WIDTH, max(left + 1, round((bar.end - origin) / scale * _WIDTH)))
        picture = " " * left + bar.mark * (right - left)
        lines.append(
            f"{bar.label:<18} {bar.start - origin:6.1f} s {bar.end - bar.start:6.1f} s  "
            f"|{picture:<{_WIDTH}}|"
        )
    return lines

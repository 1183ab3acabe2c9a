"""From what the coordinator read to what the API answers. Makes no requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar

from pydantic import BaseModel

from airflow_slurm_provider.coordinator.anomalies.alert import RAISED
from airflow_slurm_provider.coordinator.costs.actual import JobCost
from airflow_slurm_provider.coordinator.costs.prices import PRICES_OF, REGION
from airflow_slurm_provider.coordinator.status.eta import eta_of
from airflow_slurm_provider.coordinator.status.progress import progress_of
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from airflow_slurm_provider.dashboard import models
from airflow_slurm_provider.slurm.array_state import ArrayState
from slurm_worker.protocol.job_rows import AuditEvent, SubmissionRow
from slurm_worker.protocol.job_store import Marker
from slurm_worker.protocol.job_totals import JobTotals, WorkTotals
from slurm_worker.protocol.keys import RoundState
from slurm_worker.protocol.tasks import TaskRow

M = TypeVar("M", bound=BaseModel)

#: Workers that are shown; of thousands, those that fail most and those that do most.
MOST_WORKERS = 50
_MOST_NODES = 200


def view(model: type[M], source: object, **others: object) -> M:
    """A model whose fields are the attributes of `source` of the same names, and `others`."""
    same = {name: getattr(source, name) for name in model.model_fields if name not in others}
    return model.model_validate({**same, **others})


def job_summary(snapshot: Snapshot) -> models.JobSummary:
    """The job in a line."""
    progress = progress_of(snapshot)
    return models.JobSummary.model_validate(
        {
            **progress.to_dict(),
            **asdict(eta_of(snapshot)),
            # Task rows are written before the round's row has their number.
            "pending": max(0, progress.pending),
            "created_ms": snapshot.job.created_ms,
        }
    )


def job_detail(
    snapshot: Snapshot, submissions: Sequence[SubmissionRow], events: Sequence[AuditEvent]
) -> models.JobDetail:
    """The job with its rounds, submissions and times."""
    done = snapshot.done
    quantiles = {"median_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
    return view(
        models.JobDetail,
        snapshot,
        job=job_summary(snapshot),
        submissions=submissions,
        phases=phases(snapshot, submissions, events),
        times={name: done.quantile_ms(share) for name, share in quantiles.items()},
        slowest=done.slowest,
        anomalies=sum(event.action == RAISED for event in events),
        requests=done.requests,
        timeline=timeline(done),
    )


def phases(
    snapshot: Snapshot, submissions: Sequence[SubmissionRow], events: Sequence[AuditEvent]
) -> list[models.Phase]:
    """The stretches of the job's life, in the order in which they began."""
    found: list[models.Phase] = []

    def add(name: str, start_ms: int, end_ms: int | None) -> None:
        if start_ms:
            found.append(models.Phase(name=name, start_ms=start_ms, end_ms=end_ms))

    for round_row in snapshot.rounds:
        number = round_row.number
        opened = round_row.opened_ms if round_row.state is RoundState.OPEN else None
        what = f"Round {number} of new items" if round_row.appended else f"Retry {number}"
        add(f"{what} planned" if number else "Planned", round_row.created_ms, opened)
    for row in submissions:
        add(f"Submitted {row.label}", row.intent_ms, row.submitted_ms or None)
    done = snapshot.done
    if done.timeline:
        width_ms = done.width_s * 1000
        submitted = min((row.submitted_ms for row in submissions if row.submitted_ms), default=0)
        first, last = min(done.timeline) * width_ms, (max(done.timeline) + 1) * width_ms
        running = not progress_of(snapshot).complete
        add("Worked", max(first, submitted), None if running else min(last, snapshot.at_ms))
    for event in events:
        if event.action == "published":
            add("Published", event.at_ms, event.at_ms)
    return sorted(found, key=lambda phase: phase.start_ms)


def timeline(done: JobTotals) -> models.TimelineView:
    """What was done over time, without the empty buckets."""
    numbers = sorted(done.timeline)
    buckets = [done.timeline[number] for number in numbers]
    classes = sorted({name for bucket in buckets for name in bucket.failed})
    return models.TimelineView(
        width_s=done.width_s,
        start_s=[number * done.width_s for number in numbers],
        ok=[bucket.ok for bucket in buckets],
        tasks=[bucket.tasks for bucket in buckets],
        failed={name: [bucket.failed[name] for bucket in buckets] for name in classes},
    )


def workers(snapshot: Snapshot, array: ArrayState | None, problem: str) -> models.WorkersView:
    """Workers as Slurm shows them, and what nodes and the most notable workers have done."""
    done, held = snapshot.done, Counter(row.owner for row in snapshot.leased)
    return models.WorkersView(
        known=array is not None and not array.unknown,
        problem=problem,
        alive=0 if array is None else array.alive,
        states={} if array is None else array.counts(),
        slurm_job_ids=[] if array is None else array.slurm_job_id.split(","),
        nodes=_shares(done.nodes, Counter(), _MOST_NODES),
        workers=_shares(done.workers, held, MOST_WORKERS),
        worker_count=len({*done.workers, *held}),
    )


def cost(found: JobCost) -> models.Cost:
    """What was spent, by kind of request, and how well the cluster was used."""
    bill = found.spent.counted + found.spent.estimated
    return view(
        models.Cost,
        found,
        dollars=found.spent.dollars,
        dollars_expected=found.expected,
        prices_of=PRICES_OF,
        region=REGION,
        lines=[
            models.CostLine(kind=kind, requests=count, dollars=bill.by_kind[kind])
            for kind, count in bill.requests.items()
        ],
        cluster=None if found.efficiency is None else found.efficiency.to_dict(),
        problem=" ".join(found.problem.split()),
    )


def task_summary(row: TaskRow) -> models.TaskSummary:
    """A task in a line."""
    return view(
        models.TaskSummary,
        row,
        items=row.where.count,
        ok=row.items_ok,
        failed=row.items_failed,
        worker=row.owner or row.worker,
    )


def task_detail(row: TaskRow, marker: Marker | None, segment: str) -> models.TaskDetail:
    """A task with what it committed."""
    committed = None
    if marker is not None:
        started_ms, finished_ms = int(marker.started * 1000), int(marker.finished * 1000)
        times = {"started_ms": started_ms, "finished_ms": finished_ms}
        committed = view(models.MarkerView, marker, node=marker.slurm.get("node", ""), **times)
    return view(
        models.TaskDetail,
        row,
        task=task_summary(row),
        round=row.round_no,
        segment=segment,
        crashes=[crash.describe() for crash in row.crashes],
        history=[{"at_ms": entry.at_ms, "text": entry.describe()} for entry in row.history],
        marker=committed,
    )


def _shares(done: Mapping[str, WorkTotals], held: Counter[str], most: int) -> list[models.ShareRow]:
    """Nodes or workers: those that fail most first, then those that did most."""
    rows = []
    for name in filter(None, {*done, *held}):
        share = done.get(name, WorkTotals())
        rate = round(share.failed / ((share.ok + share.failed) or 1), 6)
        rows.append(view(models.ShareRow, share, name=name, error_rate=rate, leased=held[name]))
    rows.sort(key=lambda row: (-row.error_rate, -row.failed, -row.tasks, row.name))
    return rows[:most]

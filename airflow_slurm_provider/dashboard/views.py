"""From what the coordinator found to what the API answers. Makes no requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_slurm_provider.coordinator.anomalies.alert import RAISED, Alert
from airflow_slurm_provider.coordinator.costs.actual import JobCost
from airflow_slurm_provider.coordinator.costs.prices import PRICES_OF, REGION
from airflow_slurm_provider.coordinator.status.eta import outlook_of
from airflow_slurm_provider.coordinator.status.failures import Group
from airflow_slurm_provider.coordinator.status.progress import progress_of
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from airflow_slurm_provider.dashboard import models
from slurm_worker.protocol import job_rows
from slurm_worker.protocol.job_store import Marker
from slurm_worker.protocol.job_totals import JobTotals, WorkTotals
from slurm_worker.protocol.keys import RoundState
from slurm_worker.protocol.tasks import TaskRow

#: Workers that are shown; of thousands, those that fail most and those that do most.
MOST_WORKERS = 50
_MOST_NODES = 200


def job_summary(seen: Snapshot) -> models.JobSummary:
    """The job in a line."""
    progress, outlook = progress_of(seen), outlook_of(seen)
    return models.JobSummary(
        job_id=progress.job_id,
        state=progress.standing,
        stop=progress.stop,
        paused=progress.paused,
        created_ms=seen.job.created_ms,
        rounds=progress.rounds,
        items=progress.items,
        ok=progress.ok,
        failed=progress.failed,
        # Task rows that are written before their round says how many there are.
        pending=max(0, progress.pending),
        running_items=outlook.running_items,
        rows=progress.rows,
        tasks=progress.tasks,
        task_errors=progress.task_errors,
        rate=outlook.rate,
        eta_s=outlook.eta_s,
    )


def job_detail(
    seen: Snapshot, submissions: list[job_rows.SubmissionRow], events: Iterable[job_rows.AuditEvent]
) -> models.JobDetail:
    """The job with its rounds, submissions and times."""
    kept = list(events)
    done = seen.done
    return models.JobDetail(
        job=job_summary(seen),
        at_ms=seen.at_ms,
        rounds=[_round(each) for each in seen.rounds],
        submissions=[_submission(each) for each in submissions],
        phases=phases(seen, submissions, kept),
        times=models.TaskTimes(
            median_ms=done.quantile_ms(0.5),
            p95_ms=done.quantile_ms(0.95),
            p99_ms=done.quantile_ms(0.99),
        ),
        slowest=[
            models.Slow(task=each.task, took_ms=each.took_ms, worker=each.worker, node=each.node)
            for each in done.slowest
        ],
        lost=seen.lost,
        anomalies=sum(each.action == RAISED for each in kept),
        requests=dict(done.requests),
        timeline=timeline(done),
    )


def phases(
    seen: Snapshot, submissions: list[job_rows.SubmissionRow], events: Iterable[job_rows.AuditEvent]
) -> list[models.Phase]:
    """The stretches of the job's life, in the order in which they began."""
    found: list[models.Phase] = []

    def add(name: str, start_ms: int, end_ms: int | None) -> None:
        if start_ms:
            found.append(models.Phase(name=name, start_ms=start_ms, end_ms=end_ms))

    for each in seen.rounds:
        label = "Planned" if each.number == 0 else f"Retry {each.number} planned"
        opened = each.opened_ms if each.state is RoundState.OPEN else None
        add(label, each.created_ms, opened)
    for row in submissions:
        add(f"Submitted {row.label}", row.intent_ms, row.submitted_ms or None)
    done = seen.done
    if done.timeline:
        width_ms = done.width_s * 1000
        submitted = min((each.submitted_ms for each in submissions if each.submitted_ms), default=0)
        first, last = min(done.timeline) * width_ms, (max(done.timeline) + 1) * width_ms
        running = not progress_of(seen).complete
        add("Worked", max(first, submitted), None if running else min(last, seen.at_ms))
    for event in events:
        if event.action == "published":
            add("Published", event.at_ms, event.at_ms)
    return sorted(found, key=lambda each: each.start_ms)


def timeline(done: JobTotals) -> models.Timeline:
    """What was done over time, without the buckets in which nothing was."""
    numbers = sorted(done.timeline)
    buckets = [done.timeline[number] for number in numbers]
    classes = sorted({name for each in buckets for name in each.failed})
    return models.Timeline(
        width_s=done.width_s,
        start_s=[number * done.width_s for number in numbers],
        ok=[each.ok for each in buckets],
        tasks=[each.tasks for each in buckets],
        failed={name: [each.failed[name] for each in buckets] for name in classes},
    )


def shares(done: Mapping[str, WorkTotals], held: Counter[str], most: int) -> list[models.ShareRow]:
    """Nodes or workers: those that fail most first, then those that did most."""
    empty = WorkTotals()
    rows = [
        _share(name, done.get(name, empty), held[name]) for name in sorted({*done, *held}) if name
    ]
    rows.sort(key=lambda each: (-each.error_rate, -each.failed, -each.tasks, each.name))
    return rows[:most]


def nodes(seen: Snapshot) -> list[models.ShareRow]:
    """What each node has done."""
    return shares(seen.done.nodes, Counter(), _MOST_NODES)


def workers(seen: Snapshot) -> list[models.ShareRow]:
    """What the most notable workers have done and hold."""
    return shares(seen.done.workers, held_by(seen), MOST_WORKERS)


def held_by(seen: Snapshot) -> Counter[str]:
    """Tasks that each worker holds."""
    return Counter(row.owner for row in seen.leased)


def event(each: job_rows.AuditEvent) -> models.Event:
    """A line of the audit trail."""
    return models.Event(
        at_ms=each.at_ms, actor=each.actor, action=each.action, detail=dict(each.detail)
    )


def anomalies(job_id: str, events: Iterable[job_rows.AuditEvent]) -> list[models.Anomaly]:
    """Alerts out of their lines of the audit trail, each with its end, the newest first."""
    raised: dict[tuple[Any, ...], models.Anomaly] = {}
    for each in events:
        episode = tuple(each.detail.get(name) for name in ("kind", "subject", "episode"))
        if each.action == RAISED:
            alert = Alert.of_event(job_id, each)
            raised[episode] = models.Anomaly.model_validate(alert.to_dict())
        elif episode in raised:
            raised[episode].over_ms = each.at_ms
    return sorted(raised.values(), key=lambda each: -each.at_ms)


def cost(found: JobCost) -> models.Cost:
    """What was spent, by kind of request, and how well the cluster was used."""
    bill = found.spent.counted + found.spent.estimated
    use = found.efficiency
    return models.Cost(
        dollars=found.spent.dollars,
        dollars_expected=found.expected,
        prices_of=PRICES_OF,
        region=REGION,
        lines=[
            models.CostLine(kind=kind, requests=count, dollars=bill.by_kind[kind])
            for kind, count in bill.requests.items()
        ],
        cluster=None if use is None else models.ClusterUse.model_validate(use.to_dict()),
        problem=" ".join(found.problem.split()),
        advice=list(found.advice),
    )


def failure_group(group: Group) -> models.FailureGroup:
    """One kind of failure."""
    return models.FailureGroup.model_validate(group.to_dict())


def task_summary(row: TaskRow) -> models.TaskSummary:
    """A task in a line."""
    return models.TaskSummary(
        task=row.task,
        state=row.state.value,
        items=row.where.count,
        ok=row.items_ok,
        failed=row.items_failed,
        attempt=row.attempt,
        lost=row.lost,
        worker=row.owner or row.worker,
        node=row.node,
        started_ms=row.started_ms,
        took_ms=row.took_ms,
        error_class=row.error_class,
        error=row.error,
    )


def task_detail(row: TaskRow, marker: Marker | None, segment: str) -> models.TaskDetail:
    """A task with what it committed."""
    return models.TaskDetail(
        task=task_summary(row),
        round=row.round_no,
        tries=row.tries,
        reopened=row.reopened,
        failed_by=row.failed_by,
        rows=row.rows,
        lease_until_ms=row.lease_until_ms,
        not_before_ms=row.not_before_ms,
        finished_ms=row.finished_ms,
        checkpoint=row.checkpoint,
        crashes=[crash.describe() for crash in row.crashes],
        history=[
            models.HistoryLine(at_ms=entry.at_ms, text=entry.describe()) for entry in row.history
        ],
        segment=segment,
        marker=None if marker is None else _marker(marker),
    )


def _marker(marker: Marker) -> models.MarkerView:
    return models.MarkerView(
        attempt=marker.attempt,
        worker=marker.worker,
        node=marker.slurm.get("node", ""),
        rows=marker.rows,
        ok=marker.ok,
        failed=marker.failed,
        parts=[
            models.Part(key=each.key, kind=each.kind, size=each.size, sha256=each.sha256)
            for each in marker.parts
        ],
        started_ms=int(marker.started * 1000),
        finished_ms=int(marker.finished * 1000),
        split=list(marker.split),
        requests=marker.requests,
    )


def _round(row: job_rows.RoundRow) -> models.Round:
    return models.Round(
        number=row.number,
        state=row.state.value,
        source=row.source,
        tasks=row.tasks,
        items=row.items,
        retried=row.retried,
        tasks_back=row.tasks_back,
        slurm=row.slurm,
        created_ms=row.created_ms,
        opened_ms=row.opened_ms,
    )


def _submission(row: job_rows.SubmissionRow) -> models.Submission:
    return models.Submission(
        round=row.round_no,
        number=row.number,
        state=row.state.value,
        workers=row.workers,
        slurm_job_ids=list(row.slurm_job_ids),
        intent_ms=row.intent_ms,
        submitted_ms=row.submitted_ms,
    )


def _share(name: str, share: WorkTotals, leased: int) -> models.ShareRow:
    items = share.ok + share.failed
    return models.ShareRow(
        name=name,
        tasks=share.tasks,
        ok=share.ok,
        failed=share.failed,
        busy_ms=share.busy_ms,
        error_rate=round(share.failed / items, 6) if items else 0.0,
        leased=leased,
    )

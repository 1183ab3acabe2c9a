"""The screen of `slurmctl watch`, drawn from one status query.

A pure function of its argument. It imports rich, so only the command imports it. Text goes to
rich as `Text` made by `_text`: rich reads a plain `str` as markup, and lets control characters
through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from airflow_slurm_provider.cli.rendering.fields import event_line, workers_text
from airflow_slurm_provider.cli.rendering.output import by_count
from airflow_slurm_provider.coordinator.status.audit_log import as_utc
from airflow_slurm_provider.coordinator.status.eta import Eta, eta_of, stragglers, usual_ms
from airflow_slurm_provider.coordinator.status.progress import JobStatus, Progress
from airflow_slurm_provider.coordinator.status.rate_limits import LimitState
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from airflow_slurm_provider.units import format_duration
from slurm_worker.printable import printable
from slurm_worker.protocol.job_rows import AuditEvent
from slurm_worker.protocol.job_totals import WorkTotals

_NODES, _STRAGGLERS, _EVENTS = 8, 5, 5


@dataclass(frozen=True, slots=True)
class View:
    """What one status query has found."""

    status: JobStatus
    limits: Sequence[LimitState] = ()  #: the states of the job's rate limits
    events: Sequence[AuditEvent] = ()  #: the last entries of the audit log, oldest first
    note: str = ""  #: what failed at this query; the rest may be older then


def render(view: View) -> RenderableType:
    """The whole screen."""
    status, snapshot = view.status, view.status.snapshot
    outlook = Eta(0.0, None, 0) if snapshot is None else eta_of(snapshot)
    parts: list[RenderableType] = [
        _title(status),
        _bar(status.progress, outlook),
        _pace(status.progress, outlook),
        Text(),
        _counts(status),
    ]
    if snapshot is not None:
        parts += [*_nodes(status, snapshot), *_stragglers(snapshot)]
    parts += [*_limits(view.limits), *_events(view.events)]
    if view.note:
        parts += [Text(), _text(view.note, "yellow")]
    return Group(*parts)


def _title(status: JobStatus) -> Text:
    progress = status.progress
    title = Text(progress.job_id, style="bold")
    if progress.paused:
        title.append(_text(f"  paused by {progress.paused}", "yellow"))
    elif status.problem:
        title.append(_text(f"  {status.problem}", "red"))
    else:
        title.append(f"  {progress.summary_state}", style="green")
    if progress.rounds > 1:
        title.append(f"  round {progress.rounds - 1}", style="dim")
    if status.snapshot is not None:
        title.append(f"  {as_utc(status.snapshot.at_ms)[11:19]} UTC", style="dim")
    return title


def _bar(progress: Progress, outlook: Eta) -> RenderableType:
    done = progress.items - progress.pending + outlook.running_items
    share = done / progress.items if progress.items else 0.0
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(ratio=1)
    table.add_column(justify="right")
    bar = ProgressBar(total=max(1, progress.items), completed=done)
    table.add_row(bar, f"{share:.1%} of {progress.items:,} items")
    return table


def _pace(progress: Progress, outlook: Eta) -> Text:
    text = Text(f"{progress.ok:,} ok, {sum(progress.failed.values()):,} failed, ")
    text.append(f"{progress.pending:,} pending")
    if outlook.running_items:
        text.append(f" ({outlook.running_items:,} of them in running tasks, done)")
    if outlook.rate:
        text.append(f"; {outlook.line()}")
    return text


def _counts(status: JobStatus) -> Table:
    progress = status.progress
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("tasks", by_count(progress.tasks))
    table.add_row("workers", _text(workers_text(status)))
    table.add_row("failed items", _text(by_count(progress.failed), "red"))
    if progress.task_errors:
        table.add_row("failed tasks", _text(by_count(progress.task_errors), "red"))
    if status.snapshot is not None and status.snapshot.lost:
        table.add_row("leases lost", f"{status.snapshot.lost:,}")
    return table


def _nodes(status: JobStatus, snapshot: Snapshot) -> list[RenderableType]:
    elements = () if status.array is None else status.array.elements.values()
    running = Counter(
        element.node for element in elements if element.node and not element.state.terminal
    )
    done = snapshot.done.nodes
    names = sorted({*running, *done}, key=lambda name: (-running[name], name))
    if not names:
        return []
    table = _table("node", "workers", "tasks done", "items ok", "failed", "failed %")
    for name in names[:_NODES]:
        share = done.get(name, WorkTotals())
        items = share.ok + share.failed
        percent = f"{share.failed / items:.1%}" if items else ""
        table.add_row(
            *(_text(name), f"{running[name]:,}", f"{share.tasks:,}"),
            *(f"{share.ok:,}", f"{share.failed:,}", percent),
        )
    return [Text(), table, *_more(len(names) - _NODES, "nodes")]


def _stragglers(snapshot: Snapshot) -> list[RenderableType]:
    slow = stragglers(snapshot)
    if not slow:
        return []
    table = _table("slow task", "held for", "attempt", "worker")
    for row in slow[:_STRAGGLERS]:
        held = format_duration((snapshot.at_ms - row.started_ms) / 1000)
        table.add_row(row.task, held, str(row.attempt), _text(row.owner))
    usual = f"95 of 100 tasks took at most {format_duration(usual_ms(snapshot) / 1000)}"
    return [Text(), table, Text(usual, style="dim"), *_more(len(slow) - _STRAGGLERS, "slow tasks")]


def _limits(limits: Sequence[LimitState]) -> list[RenderableType]:
    if not limits:
        return []
    table = _table("limit", "rate", "configured", "used", "reserved ahead")
    for limit in limits:
        used = f"{limit.used:,}"
        if limit.quota_per_day is not None:
            used += f" of {limit.quota_per_day:,} today"
        table.add_row(
            *(_text(limit.name), f"{limit.current_rate:g}/s", f"{limit.rate:g}/s"),
            *(used, f"{limit.ahead_s:.1f} s"),
        )
    return [Text(), table]


def _events(events: Iterable[AuditEvent]) -> list[RenderableType]:
    lines = [event_line(event) for event in events][-_EVENTS:]
    shown = [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in lines]
    return [Text(), *shown] if shown else []


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text), style=style)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def _more(count: int, what: str) -> list[RenderableType]:
    return [Text(f"and {count:,} more {what}", style="dim")] if count > 0 else []

"""``/metrics``: the newest jobs in Prometheus's text format.

The format is a dozen lines of code, so no library is needed. Scrapes share the cache with browsers
(`cache.py`). Names are stable: docs/grafana/dashboard.json uses them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Query, Response

from airflow_slurm_provider.coordinator.costs.actual import cost_so_far
from airflow_slurm_provider.coordinator.status.rate_limits import LimitState
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from airflow_slurm_provider.dashboard import views
from airflow_slurm_provider.dashboard.cache import JobCache
from airflow_slurm_provider.dashboard.dependencies import Site
from slurm_worker.errors import ServiceError

_MOST_JOBS = 20
_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: (type, help) by name; the order of the output.
METRICS = {
    "slurm_backfill_up": ("gauge", "Whether the service of this name answered."),
    "slurm_backfill_items": ("gauge", "Items of the job's input."),
    "slurm_backfill_items_ok": ("gauge", "Items that succeeded."),
    "slurm_backfill_items_failed": ("gauge", "Items that failed last, by error class."),
    "slurm_backfill_items_pending": ("gauge", "Items without a final outcome."),
    "slurm_backfill_rows": ("gauge", "Rows that the handler returned."),
    "slurm_backfill_items_per_second": ("gauge", "Items a second in the last minutes."),
    "slurm_backfill_eta_seconds": ("gauge", "Seconds left at this rate."),
    "slurm_backfill_tasks": ("gauge", "Tasks by state."),
    "slurm_backfill_leases_lost_total": ("counter", "Leases that were lost."),
    "slurm_backfill_job_state": ("gauge", "1 for the state that the job is in."),
    "slurm_backfill_workers": ("gauge", "Workers by Slurm's state."),
    "slurm_backfill_workers_alive": ("gauge", "Workers in Slurm's queue."),
    "slurm_backfill_limit_rate": ("gauge", "Tokens a second, as the limit is now."),
    "slurm_backfill_limit_configured_rate": ("gauge", "Tokens a second, as configured."),
    "slurm_backfill_limit_used_total": ("counter", "Tokens that were reserved."),
    "slurm_backfill_dollars": ("gauge", "AWS requests so far, at list prices."),
    "slurm_backfill_anomalies_total": ("counter", "Alerts that were raised, by kind."),
}

router = APIRouter()


class Sample(NamedTuple):
    """One line: a metric's name, its labels, its value."""

    name: str
    labels: dict[str, str]
    value: float


@router.get("/metrics", response_class=Response, include_in_schema=False)
def get_metrics(
    site: Site, jobs: Annotated[int, Query(ge=1, le=_MOST_JOBS)] = _MOST_JOBS
) -> Response:
    """The newest jobs, as Prometheus reads them. Unreachable services are reported as down."""
    return Response(render(_samples(site, jobs)), media_type=_CONTENT_TYPE)


def render(samples: Iterable[Sample]) -> str:
    """The text format: samples of one name together, below its help and type."""
    by_name: dict[str, list[Sample]] = {name: [] for name in METRICS}
    for sample in samples:
        by_name[sample.name].append(sample)
    lines = []
    for name, (kind, text) in METRICS.items():
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        for sample in by_name[name]:
            labels = ",".join(f'{key}="{_escape(value)}"' for key, value in sample.labels.items())
            lines.append(f"{name}{{{labels}}} {sample.value}")
    return "\n".join(lines) + "\n"


def _samples(site: JobCache, most: int) -> Iterator[Sample]:
    try:
        found, _ = site.newest(0, most)
        samples = [sample for seen in found for sample in _of_job(site, seen)]
    except ServiceError:
        yield Sample("slurm_backfill_up", {"service": "table"}, 0)
        return
    yield Sample("slurm_backfill_up", {"service": "table"}, 1)
    yield from samples


def _of_job(site: JobCache, seen: Snapshot) -> Iterator[Sample]:
    job = seen.job.job
    summary = views.job_summary(seen)
    name = "slurm_backfill_"
    labels: dict[str, str] = {"job": job}
    yield Sample(f"{name}items", labels, summary.items)
    yield Sample(f"{name}items_ok", labels, summary.ok)
    yield Sample(f"{name}items_pending", labels, summary.pending)
    yield Sample(f"{name}rows", labels, summary.rows)
    yield Sample(f"{name}items_per_second", labels, summary.rate)
    if summary.eta_s is not None:
        yield Sample(f"{name}eta_seconds", labels, summary.eta_s)
    yield Sample(f"{name}leases_lost_total", labels, seen.lost)
    spent = cost_so_far(seen.done, seen.rounds, seen.requests_of_open)
    yield Sample(f"{name}dollars", labels, spent.dollars)
    yield Sample(f"{name}job_state", {**labels, "state": summary.state}, 1)
    for error_class, count in summary.failed.items():
        yield Sample(f"{name}items_failed", {**labels, "class": error_class}, count)
    for state, count in summary.tasks.items():
        yield Sample(f"{name}tasks", {**labels, "state": state}, count)
    kinds = Counter(alert.kind.value for alert in site.alerts(job))
    for kind, count in sorted(kinds.items()):
        yield Sample(f"{name}anomalies_total", {**labels, "kind": kind}, count)
    if summary.state != "complete":
        yield from _of_running(site, seen)


def _of_running(site: JobCache, seen: Snapshot) -> Iterator[Sample]:
    """Metrics that change only while workers run: the cluster's, and the limits'."""
    labels: dict[str, str] = {"job": seen.job.job}
    try:
        array = site.arrays(seen.job.job)
    except ServiceError:
        yield Sample("slurm_backfill_up", {**labels, "service": "cluster"}, 0)
    else:
        yield Sample("slurm_backfill_up", {**labels, "service": "cluster"}, 1)
        yield Sample("slurm_backfill_workers_alive", labels, array.alive if array else 0)
        for state, count in (array.counts() if array else {}).items():
            yield Sample("slurm_backfill_workers", {**labels, "state": state}, count)
    for limit in site.limits(seen.job.job):
        yield from _of_limit(labels, limit)


def _of_limit(labels: dict[str, str], limit: LimitState) -> Iterator[Sample]:
    named = {**labels, "limit": limit.name}
    yield Sample("slurm_backfill_limit_rate", named, limit.current_rate)
    yield Sample("slurm_backfill_limit_configured_rate", named, limit.rate)
    yield Sample("slurm_backfill_limit_used_total", named, limit.used)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

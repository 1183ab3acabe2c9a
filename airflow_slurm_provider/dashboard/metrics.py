"""``/metrics``: the newest jobs in Prometheus's text format.

The format is a dozen lines of code, so no library is needed. Scrapes share the cache with browsers
(`cache.py`). Names are stable: docs/grafana/dashboard.json uses them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Response

from airflow_slurm_provider.coordinator.costs.actual import cost_so_far
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from airflow_slurm_provider.dashboard import views
from airflow_slurm_provider.dashboard.cache import JobCache
from airflow_slurm_provider.dashboard.dependencies import Site
from slurm_worker.errors import ServiceError
from slurm_worker.protocol.keys import JobId

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

#: The metrics that are numbers of a `models.JobSummary`.
_OF_SUMMARY = {
    "items": "items",
    "items_ok": "ok",
    "items_pending": "pending",
    "rows": "rows",
    "items_per_second": "rate",
    "eta_seconds": "eta_s",
}

#: One line: a metric's name, its labels, its value.
Sample = tuple[str, dict[str, str], float]

router = APIRouter()


@router.get("/metrics", response_class=Response, include_in_schema=False)
def get_metrics(
    site: Site, jobs: Annotated[int, Query(ge=1, le=_MOST_JOBS)] = _MOST_JOBS
) -> Response:
    """The newest jobs, as Prometheus reads them. Unreachable services are reported as down."""
    return Response(render(_samples(site, jobs)), media_type=_CONTENT_TYPE)


def render(samples: Iterable[Sample]) -> str:
    """The text format: samples of one name together, below its help and type."""
    lines = {
        name: [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        for name, (kind, text) in METRICS.items()
    }
    for name, labels, value in samples:
        shown = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
        lines[name].append(f"{name}{{{shown}}} {value}")
    return "".join(f"{line}\n" for group in lines.values() for line in group)


def _samples(site: JobCache, most: int) -> Iterator[Sample]:
    try:
        found, _ = site.newest(0, most)
        samples = [sample for snapshot in found for sample in _of_job(site, snapshot)]
    except ServiceError:
        yield "slurm_backfill_up", {"service": "table"}, 0
        return
    yield "slurm_backfill_up", {"service": "table"}, 1
    yield from samples


def _of_job(site: JobCache, snapshot: Snapshot) -> Iterator[Sample]:
    job, summary = snapshot.job.job, views.job_summary(snapshot)
    sample = partial(_sample, job)
    for name, field in _OF_SUMMARY.items():
        value = getattr(summary, field)
        if value is not None:
            yield sample(name, value)
    yield sample("leases_lost_total", snapshot.lost)
    spent = cost_so_far(snapshot)
    yield sample("dollars", spent.dollars)
    yield sample("job_state", 1, state=summary.state)
    for error_class, count in summary.failed.items():
        yield sample("items_failed", count, **{"class": error_class})
    for state, count in summary.tasks.items():
        yield sample("tasks", count, state=state)
    kinds = Counter(alert.kind.value for alert in site.alerts(job))
    for kind, count in sorted(kinds.items()):
        yield sample("anomalies_total", count, kind=kind)
    if summary.state != "complete":
        yield from _of_running(site, job)


def _of_running(site: JobCache, job: JobId) -> Iterator[Sample]:
    """Metrics that change only while workers run: the cluster's, and the limits'."""
    sample = partial(_sample, job)
    try:
        array = site.arrays(job)
    except ServiceError:
        yield sample("up", 0, service="cluster")
    else:
        yield sample("up", 1, service="cluster")
        yield sample("workers_alive", array.alive if array else 0)
        for state, count in (array.counts() if array else {}).items():
            yield sample("workers", count, state=state)
    for limit in site.limits(job):
        yield sample("limit_rate", limit.current_rate, limit=limit.name)
        yield sample("limit_configured_rate", limit.rate, limit=limit.name)
        yield sample("limit_used_total", limit.used, limit=limit.name)


def _sample(job: str, name: str, value: float, **labels: str) -> Sample:
    return f"slurm_backfill_{name}", {"job": job, **labels}, value


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

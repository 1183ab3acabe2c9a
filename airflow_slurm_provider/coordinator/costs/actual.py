"""What a job has cost so far: AWS requests in dollars, the cluster's CPU time and memory.

Requests are counted by the workers' markers and by the rows of tasks that were given back. Other
requests (the coordinator's, and a worker's after its last marker) are estimated, and reported as
estimates. Requests of the report itself: those of `status/snapshot.py`, the configuration, and one
``sacct``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from airflow_slurm_provider.coordinator import spec_store
from airflow_slurm_provider.coordinator.costs import prices
from airflow_slurm_provider.coordinator.costs.advice import JobProfile, advise
from airflow_slurm_provider.coordinator.planning.bundle_size import bundle_of
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from airflow_slurm_provider.coordinator.status.arrays import arrays_of
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot, read_snapshot
from airflow_slurm_provider.slurm.accounting import Efficiency, efficiency_of
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol.job_rows import RoundRow
from slurm_worker.protocol.job_totals import JobTotals
from slurm_worker.protocol.keys import JobId

#: A job of so few dollars is never too expensive.
_NEGLIGIBLE = 0.05


@dataclass(frozen=True, slots=True)
class Spent:
    """A job's AWS requests so far."""

    counted: prices.Bill  #: by the workers' markers, and the rows of tasks that were given back
    estimated: prices.Bill  #: of the coordinator's planning, and of workers after their last marker

    @property
    def dollars(self) -> float:
        """Both together."""
        return self.counted.dollars + self.estimated.dollars


@dataclass(frozen=True, slots=True)
class JobCost:
    """What a job has cost so far."""

    job_id: str
    tasks: int  #: tasks that are done
    items: int
    spent: Spent
    expected: float  #: dollars for so many tasks of such a duration, if none is tried twice
    #: Of the cluster's CPUs and memory; None where Slurm did not report it
    efficiency: Efficiency | None
    problem: str  #: why it could not; empty where it could
    advice: tuple[str, ...]  #: sentences

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {
            "job_id": self.job_id,
            "tasks": self.tasks,
            "items": self.items,
            "dollars": round(self.spent.dollars, 8),
            "dollars_expected": round(self.expected, 8),
            "counted": self.spent.counted.to_dict(),
            "estimated": self.spent.estimated.to_dict(),
            "prices": {"region": prices.REGION, "of": prices.PRICES_OF},
            "cluster": self.efficiency.to_dict() if self.efficiency else None,
            "problem": self.problem,
            "advice": list(self.advice),
        }


def read_cost(services: Services, job_id: JobId) -> JobCost:
    """What the job has cost so far, and what would make it cheaper.

    Raises:
        UserError: if there is no such job.
        ServiceError: if the table or the store can't be reached; a cluster that can't be
            reached is reported in the result.
    """
    snapshot = read_snapshot(services, job_id)
    spec = spec_store.read_spec(services, snapshot.job)
    efficiency, problem = None, ""
    try:
        arrays = arrays_of(services, job_id, services.jobs(job_id).submissions())
        usages = services.slurm.records(arrays)
        # The embedded cluster, for example, measures nothing.
        measured = any(usage.cpus for usage in usages)
        efficiency = efficiency_of(usages) if measured else None
        problem = "" if measured else "the cluster's accounting has no data on the job's arrays"
    except (ServiceError, UserError) as error:
        problem = str(error)
    done, profile = snapshot.done, profile_of(snapshot.done, spec, efficiency)
    work = expected_work(spec, done.tasks, profile.items, profile.workers, _busy_s(done))
    return JobCost(
        job_id=job_id,
        tasks=done.tasks,
        items=profile.items,
        spent=cost_so_far(snapshot),
        expected=(_planned(snapshot.rounds) + work).dollars,
        efficiency=efficiency,
        problem=problem,
        advice=tuple(advise(profile)),
    )


def cost_so_far(snapshot: Snapshot) -> Spent:
    """A job's requests until then; makes none itself."""
    ending = prices.ending_bill(len(snapshot.done.workers))
    return Spent(_counted(snapshot), _planned(snapshot.rounds) + ending)


def work_cost(snapshot: Snapshot, spec: JobSpec) -> tuple[float, float]:
    """Dollars of the workers' requests so far, and expected for the whole job; makes no request.

    Planning is in neither, since it is spent before the first task. So the first grows with the
    items, and can be scaled to all of them. The second is at least `_NEGLIGIBLE`, so that nobody
    gets an alert for cents.
    """
    done = snapshot.done
    tasks = sum(round_row.tasks for round_row in snapshot.rounds)
    items = sum(round_row.items for round_row in snapshot.rounds)
    workers = max(len(done.workers), min(tasks, spec.max_workers))
    # As if all tasks were like those that are done.
    busy_s = _busy_s(done) * tasks / done.tasks if done.tasks else 0.0
    expected = expected_work(spec, tasks, items, workers, busy_s).dollars
    return round(_counted(snapshot).dollars, 8), round(max(_NEGLIGIBLE, expected), 8)


def expected_work(
    spec: JobSpec, tasks: int, items: int, workers: int, busy_s: float
) -> prices.Bill:
    """The workers' requests, if no task is tried twice; `busy_s` is of all tasks together."""
    reservations = sum(
        prices.reservations_of(limit.rate, items, spec.max_workers, limit.quota_per_day)
        for limit in spec.limits.values()
    )
    return prices.working_bill(
        tasks, workers, busy_s=busy_s, heartbeat_s=spec.lease.heartbeat, reservations=reservations
    )


def profile_of(done: JobTotals, spec: JobSpec, efficiency: Efficiency | None) -> JobProfile:
    """The job's work so far, for the advice."""
    slow_s = done.quantile_ms(0.95) / 1000
    return JobProfile(
        tasks=done.tasks,
        items=done.ok + done.failed.total(),
        bundle=bundle_of(spec),
        workers=len(done.workers),
        calls=spec.worker.concurrency,
        median_s=done.quantile_ms(0.5) / 1000,
        slow_s=slow_s,
        span_s=_worked_s(done, slow_s),
        lost=done.lost,
        failed=dict(done.failed),
        limits={name: limit.rate for name, limit in spec.limits.items()},
        efficiency=efficiency,
    )


def _worked_s(done: JobTotals, slow_s: float) -> float:
    """Seconds during which tasks ended: pauses longer than a task, as between rounds, left out."""
    buckets = sorted(done.timeline)
    longest = max(1.0, slow_s / done.width_s)
    gaps = (min(after - before, longest) for before, after in pairwise(buckets))
    return (sum(gaps) + bool(buckets)) * done.width_s


def _busy_s(done: JobTotals) -> float:
    return sum(share.busy_ms for share in done.workers.values()) / 1000


def _counted(snapshot: Snapshot) -> prices.Bill:
    return prices.bill_of(snapshot.done.requests) + prices.bill_of(snapshot.requests_of_open)


def _planned(rounds: Sequence[RoundRow]) -> prices.Bill:
    # While a round is planned, its row has the number of tasks that are written.
    tasks = sum(max(round_row.tasks, round_row.cursor) for round_row in rounds)
    return prices.planning_bill(tasks, sum(round_row.items for round_row in rounds), len(rounds))

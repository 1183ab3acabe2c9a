"""One observation of a job, as the detector of anomalies gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from airflow_slurm_provider.coordinator.status.rate_limits import LimitState
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from slurm_worker.protocol.job_config import LeaseConfig


@dataclass(frozen=True, slots=True)
class Observation:
    """A snapshot, and what else is known at that time."""

    snapshot: Snapshot  #: the job's tasks
    finished: bool = False  #: every task has ended
    workers: int | None = None  #: elements of the array that run; None where Slurm was not queried
    #: Node by the beginning of its workers' names (``<array>_<element>-``)
    nodes: Mapping[str, str] = field(default_factory=dict)
    limits: tuple[LimitState, ...] = ()  #: the state of the job's rate limits
    #: The cost of the workers' requests so far; None where it is not known
    dollars: float | None = None
    estimate: float = 0.0  #: the expected cost of their requests in the whole job, in dollars
    lease: LeaseConfig = field(default_factory=LeaseConfig)  #: times of the job's leases

    @property
    def at_ms(self) -> int:
        """When, by AWS's clock."""
        return self.snapshot.at_ms

"""The time that rebuilt rows are given."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.backends.clock import boot_time
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobId


@dataclass(frozen=True, slots=True)
class FixedClock:
    """A clock that stands still: rows get the time of what they describe, not of the repair."""

    at: float

    def now(self) -> float:
        """See `ports.Clock.now`."""
        return self.at

    def boot_time(self) -> float:
        """See `ports.Clock.boot_time`."""
        return boot_time()

    def sleep(self, seconds: float) -> None:
        """See `ports.Clock.sleep`: not supported."""
        raise NotImplementedError("a fixed clock can't wait")


def jobs_at(services: Services, job_id: JobId, at: float) -> JobTable:
    """The job's own rows, written as at a time in seconds since the epoch."""
    return JobTable(services.rows, job_id, FixedClock(at))

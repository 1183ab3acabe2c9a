"""What the steps of a repair share, and its result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from airflow_slurm_provider.coordinator.services import Log, Services
from slurm_worker.backends.clock import boot_time
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.job_table import JobTable


@dataclass(slots=True)
class RepairResult:
    """What was repaired."""

    job_id: str
    dry_run: bool  #: nothing was written
    job: bool = False  #: whether the job's row, or its entry in the register of jobs, was missing
    #: Numbers of the rounds whose rows were missing
    rounds: list[int] = field(default_factory=list)
    submissions: list[str] = field(default_factory=list)  #: their labels, likewise
    tasks: int = 0  #: rows of tasks that were missing
    completed: int = 0  #: rows, including missing ones, that are done now as their markers say
    #: What can't be repaired, and what to do about it
    unrepaired: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether anything was wrong that can be repaired."""
        return bool(self.job or self.rounds or self.submissions or self.tasks or self.completed)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        document = asdict(self)
        document["unmended"] = document.pop("unrepaired")
        return document


@dataclass(frozen=True, slots=True)
class RepairContext:
    """One repair of one job."""

    services: Services
    store: JobStore  #: the job's objects
    result: RepairResult  #: collects what was repaired
    log: Log  #: gets a line for each step

    @property
    def write(self) -> bool:
        """Whether rows are written; false in a dry run."""
        return not self.result.dry_run

    @property
    def jobs(self) -> JobTable:
        """The job's own rows."""
        return self.services.jobs(self.store.paths.job)

    def jobs_at(self, at: float) -> JobTable:
        """The job's own rows, written as at a time in seconds since the epoch."""
        return JobTable(self.services.rows, self.store.paths.job, FixedClock(at))


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

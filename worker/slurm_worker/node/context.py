"""What all parts of one worker process share."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slurm_worker.backends.request_counter import RequestCounts
from slurm_worker.errors import ServiceError, describe
from slurm_worker.execution.flight_recorder import Recorder
from slurm_worker.node.slurm_job import Drain, WorkerExit, WorkerIdentity, requeue
from slurm_worker.node.threads import Threads
from slurm_worker.protocol.job_config import JobConfig
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.ports import Clock, Logger, ObjectStore, Value
from slurm_worker.protocol.task_table import TaskTable

_END_EVENTS = {WorkerExit.CREDENTIALS: "no_credentials", WorkerExit.CLOCK: "wrong_clock"}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """One worker process: its job, its services, its place on the node."""

    config: JobConfig
    identity: WorkerIdentity
    store: JobStore
    jobs: JobTable
    table: TaskTable
    buckets: Callable[[str], ObjectStore]  #: gives the store of a bucket, for handlers
    clock: Clock  #: AWS time
    scratch: Path  #: an empty node-local folder of this process
    logger: Logger
    threads: Threads
    drain: Drain
    rng: random.Random  #: jitter and random picks
    recorder: Recorder = field(default_factory=Recorder)
    #: Counts this process's requests to AWS
    requests: RequestCounts = field(default_factory=RequestCounts)
    seconds_left: float | None = None  #: until Slurm ends this job; None if that is not known
    array_size: int | None = None  #: elements of this worker's array; None if that is not known
    #: Seconds that a stopping worker waits for the items that run. Slurm kills about 30 s after its
    #: signal
    drain_s: float = 12.0
    #: Ends the process at once, whatever its main thread does
    leave: Callable[[], None] = lambda: None
    #: Has Slurm start this array element again; returns Slurm's error text
    requeue: Callable[[Mapping[str, str]], str] = requeue

    def record_end(self, error: ServiceError) -> WorkerExit:
        """The exit code of a worker that an error of a service ends.

        A reason that is the node's goes to the audit log, if the table accepts it. Otherwise the
        exit code and Slurm's output say it.
        """
        code = WorkerExit.after(error)
        if code in _END_EVENTS:
            node = self.identity.slurm.get("node", "")
            self.record_event(_END_EVENTS[code], {"error": describe(error), "node": node})
        return code

    def record_event(self, action: str, detail: dict[str, Value]) -> None:
        """Append a line to the audit log; continue without it if the table can't be reached."""
        try:
            self.jobs.audit(self.identity.worker, action, detail)
        except ServiceError as error:
            self.logger.warning("not in the audit log", action=action, error=str(error))

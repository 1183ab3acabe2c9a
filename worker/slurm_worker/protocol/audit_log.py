"""What a worker adds to the job's audit log: the few events that are worth a row.

A lease taken from another worker, a task bisected or given up because its workers died, a
rate cut after a 429, and a stopped job: the worker whose conditional write did it records it.
Requests: one write per event, none if nothing goes wrong. The SDK repeats a write whose reply
was lost with the same key, which is then refused: no event is recorded twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from slurm_worker.errors import ServiceError
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.ports import Logger, Value

#: Records an event: what was done, and its details.
RecordEvent: TypeAlias = Callable[[str, dict[str, Value]], None]


def ignore_event(_action: str, _detail: dict[str, Value]) -> None:
    """Record nothing."""


class AuditLog:
    """Records the events of one worker, and continues if that fails.

    Args:
        jobs: the job's own rows.
        worker: the worker that acts.
        logger: for events that could not be recorded.
    """

    def __init__(self, jobs: JobTable, worker: str, logger: Logger) -> None:
        self._jobs = jobs
        self._worker = worker
        self._logger = logger

    def record(self, action: str, detail: dict[str, Value]) -> None:
        """Append a line; work continues without it if the table can't be reached."""
        try:
            self._jobs.audit(self._worker, action, detail)
        except ServiceError as error:
            self._logger.warning("not in the audit log", action=action, error=str(error))

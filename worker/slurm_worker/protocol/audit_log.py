"""What a worker adds to the job's audit trail: the few things that are worth a row.

A lease taken from another worker, a task bisected or given up because its workers died, a
rate cut after a 429, and a job stopped: each is noted by the one worker whose conditional
write did it. Requests: one write per event, none where nothing goes wrong. The SDK repeats
a write whose reply was lost with the same key, which is then refused: no event stands twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from slurm_worker.errors import ServiceError
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.ports import Logger, Value

#: Told of what deserves a line: what was done, and its details.
RecordEvent: TypeAlias = Callable[[str, dict[str, Value]], None]


def ignore_event(_action: str, _detail: dict[str, Value]) -> None:
    """Nobody is told."""


class AuditLog:
    """Notes events of one worker, and goes on where that fails.

    Args:
        jobs: the job's own rows.
        worker: who acts.
        logger: told of events that could not be noted.
    """

    def __init__(self, jobs: JobTable, worker: str, logger: Logger) -> None:
        self._jobs = jobs
        self._worker = worker
        self._logger = logger

    def record(self, action: str, detail: dict[str, Value]) -> None:
        """Append a line; the work goes on without it where the table can't be reached."""
        try:
            self._jobs.audit(self._worker, action, detail)
        except ServiceError as error:
            self._logger.warning("not in the audit trail", action=action, error=str(error))

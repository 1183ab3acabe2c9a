"""Waits in the triggerer until a job's tasks have all ended, or waiting is vain.

Survives restarts of the triggerer, because it keeps nothing: each look reads the table.
One SSH connection per cluster and triggerer is shared by all waiting tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_slurm_provider.coordinator import job
from airflow_slurm_provider.coordinator.progress import Poll
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.hooks.slurm import SlurmHook
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.keys import check_job_id

_LONGEST_PAUSE_S = 60.0


class SlurmArrayTrigger(BaseTrigger):
    """Fires once: ``finished``, ``stalled`` (no worker is left) or ``failed``.

    :param job_id: the backfill.
    :param poll_interval: seconds between two looks.
    :param cancel_on_kill: cancel the arrays when the waiting task is killed or cleared.
    :param failures_allowed: looks in a row that may fail before the task fails.
    :param state: handed back with the event, for operators that wait several times.
    """

    def __init__(
        self,
        job_id: str,
        slurm_conn_id: str,
        aws_conn_id: str | None,
        poll_interval: float = 10.0,
        cancel_on_kill: bool = False,
        failures_allowed: int = 20,
        state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's base is untyped
        self.job_id = job_id
        self.slurm_conn_id = slurm_conn_id
        self.aws_conn_id = aws_conn_id
        self.poll_interval = poll_interval
        self.cancel_on_kill = cancel_on_kill
        self.failures_allowed = failures_allowed
        self.state = state or {}

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments; no credentials."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "job_id": self.job_id,
                "slurm_conn_id": self.slurm_conn_id,
                "aws_conn_id": self.aws_conn_id,
                "poll_interval": self.poll_interval,
                "cancel_on_kill": self.cancel_on_kill,
                "failures_allowed": self.failures_allowed,
                "state": self.state,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is something to say."""
        failures = 0
        said = ""
        services: Services | None = None
        while True:
            try:
                if services is None:
                    services = await asyncio.to_thread(self._open)
                seen = await asyncio.to_thread(job.poll, services, check_job_id(self.job_id))
            except ServiceError as error:
                failures += 1
                if failures > self.failures_allowed:
                    yield _fire(self._event("failed", message=str(error)))
                    return
                self.log.warning("look %d in a row failed: %s", failures, error)
                await asyncio.sleep(min(_LONGEST_PAUSE_S, self.poll_interval * failures))
                continue
            except UserError as error:
                yield _fire(self._event("failed", message=str(error)))
                return
            failures = 0
            line = seen.progress.line()
            if line != said:
                self.log.info("%s", line)
                said = line
            event = event_of(seen)
            if event is not None:
                yield _fire({**event, "state": self.state})
                return
            await asyncio.sleep(self.poll_interval)

    async def on_kill(self) -> None:
        """Called when the waiting task is killed or cleared."""
        if self.cancel_on_kill:
            services = await asyncio.to_thread(self._open)
            await asyncio.to_thread(job.cancel, services, check_job_id(self.job_id))

    def _open(self) -> Services:
        return SlurmHook(self.slurm_conn_id, self.aws_conn_id).services()

    def _event(self, status: str, message: str) -> dict[str, Any]:
        return {"status": status, "message": message, "progress": None, "state": self.state}


def _fire(payload: dict[str, Any]) -> TriggerEvent:
    return TriggerEvent(payload)  # type: ignore[no-untyped-call]  # Airflow's class is untyped


def event_of(seen: Poll) -> dict[str, Any] | None:
    """What a look means to someone who waits; None where it is too early to say."""
    progress = seen.progress.to_dict()
    if seen.finished:
        return {"status": "finished", "message": seen.progress.line(), "progress": progress}
    if seen.problem:
        return {"status": "stalled", "message": seen.problem, "progress": progress}
    return None

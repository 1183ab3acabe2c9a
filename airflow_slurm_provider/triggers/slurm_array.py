"""Waits in the triggerer until a job's tasks have all ended, or waiting is vain.

Survives restarts of the triggerer, because it keeps nothing: each look reads the table.
One SSH connection per cluster and triggerer, and one look at the cluster per interval, is
shared by all waiting tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_slurm_provider.coordinator import job
from airflow_slurm_provider.coordinator.progress import Poll
from airflow_slurm_provider.coordinator.watch import Watcher
from airflow_slurm_provider.hooks.slurm import SlurmHook
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.keys import check_job_id

T = TypeVar("T")

_LONGEST_PAUSE_S = 60.0
_THREADS = ThreadPoolExecutor(16, thread_name_prefix="slurm-trigger")


class SlurmArrayTrigger(BaseTrigger):
    """Fires once: ``finished``, ``stalled`` (no worker is left) or ``failed``.

    :param job_id: the backfill.
    :param poll_interval: seconds between two looks.
    :param cancel_on_kill: cancel the arrays when the waiting task is killed or cleared.
    :param failures_allowed: looks in a row that may fail before the task fails.
    :param max_resubmissions: arrays of new workers that a round may get when its workers are
        gone and tasks are left.
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
        max_resubmissions: int = 0,
        state: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's base is untyped
        self.job_id = job_id
        self.slurm_conn_id = slurm_conn_id
        self.aws_conn_id = aws_conn_id
        self.poll_interval = poll_interval
        self.cancel_on_kill = cancel_on_kill
        self.failures_allowed = failures_allowed
        self.max_resubmissions = max_resubmissions
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
                "max_resubmissions": self.max_resubmissions,
                "state": self.state,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is something to say."""
        failures = 0
        watcher: Watcher | None = None
        while True:
            try:
                if watcher is None:
                    watcher = await _in_thread(self._watcher)
                seen = await _in_thread(watcher.look)
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
            event = event_of(seen)
            if event is not None:
                yield _fire({**event, "lost_workers": dict(watcher.lost), "state": self.state})
                return
            await asyncio.sleep(self.poll_interval)

    async def on_kill(self) -> None:
        """Called when the waiting task is killed or cleared."""
        if self.cancel_on_kill:
            await _in_thread(self._cancel)

    def _cancel(self) -> None:
        job.cancel(self._hook().services(), check_job_id(self.job_id))

    def _watcher(self) -> Watcher:
        return Watcher(
            self._hook().services(poll_s=self.poll_interval),
            check_job_id(self.job_id),
            self.log.info,
            max_resubmissions=self.max_resubmissions,
            actor="airflow triggerer",
        )

    def _hook(self) -> SlurmHook:
        return SlurmHook(self.slurm_conn_id, self.aws_conn_id)

    def _event(self, status: str, message: str) -> dict[str, Any]:
        return {
            "status": status,
            "message": message,
            "progress": None,
            "lost_workers": {},
            "state": self.state,
        }


async def _in_thread(function: Callable[[], T]) -> T:
    """Run what waits for the network in one of our own threads: a triggerer has few."""
    return await asyncio.get_running_loop().run_in_executor(_THREADS, function)


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

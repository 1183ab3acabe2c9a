"""What all triggers that poll share: the interval, and how many queries in a row may fail."""

from __future__ import annotations

import asyncio
import contextvars
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from airflow.providers.common.compat.sdk import conf
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_slurm_provider.hooks.slurm import SlurmHook
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.failure_budget import FailureBudget

T = TypeVar("T")

#: Status queries in a row that may fail before the wait ends.
FAILURES_ALLOWED = 20
_LONGEST_PAUSE_S = 60.0
#: No event sooner than this after the start; see `_settle_s`.
_SETTLE_S = 7.0
#: What is added to Airflow's interval, for the end of the process to reach the scheduler.
_MARGIN_S = 2.0
_THREADS = ThreadPoolExecutor(16, thread_name_prefix="slurm-trigger")


class PollBudget(FailureBudget):
    """The budget of status queries in a row that fail, for a wait in a trigger or in a task.

    :param poll_interval: seconds between two queries.
    :param log: gets a line for each failed query.
    :param failures_allowed: queries in a row that may fail.
    """

    def __init__(
        self, poll_interval: float, log: Any, failures_allowed: int = FAILURES_ALLOWED
    ) -> None:
        super().__init__(failures_allowed)
        self._poll_interval = poll_interval
        self._log = log

    def allow_error(self, error: ServiceError) -> bool:
        """Record a failed query; whether to query again."""
        allowed = self.allow()
        self._log.warning("status query %d in a row failed: %s", self.failures, error)
        return allowed

    @property
    def pause_s(self) -> float:
        """Seconds until the next query: the more have failed, the longer."""
        pause = self._poll_interval * max(1, self.failures)
        return min(max(_LONGEST_PAUSE_S, self._poll_interval), pause)


class PollingTrigger(BaseTrigger):
    """Looks every so many seconds, in threads, until there is an event; fires once.

    An event that says why looking is vain has the status ``failed``.

    :param slurm_conn_id: connection of type ``slurm``.
    :param aws_conn_id: connection of type ``aws``.
    :param poll_interval: seconds between two looks.
    :param cancel_on_kill: cancel what is waited for when the waiting task is killed or cleared.
    :param failures_allowed: looks in a row that may fail before the task fails.
    """

    def __init__(
        self,
        slurm_conn_id: str,
        aws_conn_id: str | None,
        poll_interval: float,
        cancel_on_kill: bool,
        failures_allowed: int,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's base is untyped
        self.slurm_conn_id = slurm_conn_id
        self.aws_conn_id = aws_conn_id
        self.poll_interval = poll_interval
        self.cancel_on_kill = cancel_on_kill
        self.failures_allowed = failures_allowed

    @property
    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """Arguments that are this trigger's own; no credentials."""

    @abstractmethod
    def look(self) -> dict[str, Any] | None:
        """One look, in a thread: the event to fire, or None where it is too early.

        :raises ServiceError: if looking again may help.
        :raises UserError: if it can't.
        """

    @abstractmethod
    def failed(self, message: str) -> dict[str, Any]:
        """The event for looks that failed."""

    @abstractmethod
    def cancel(self) -> None:
        """Cancel what is waited for; in a thread."""

    @property
    def hook(self) -> SlurmHook:
        """The connections."""
        return SlurmHook(self.slurm_conn_id, self.aws_conn_id)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments; no credentials."""
        common = {
            "slurm_conn_id": self.slurm_conn_id,
            "aws_conn_id": self.aws_conn_id,
            "poll_interval": self.poll_interval,
            "cancel_on_kill": self.cancel_on_kill,
            "failures_allowed": self.failures_allowed,
        }
        return f"{type(self).__module__}.{type(self).__qualname__}", {**self.arguments, **common}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look until there is something to say."""
        clock = asyncio.get_running_loop().time
        settled = clock() + _settle_s()
        budget = PollBudget(self.poll_interval, self.log, self.failures_allowed)
        while True:
            try:
                event = await _in_thread(self.look)
                budget.reset()
            except ServiceError as error:
                event = None if budget.allow_error(error) else self.failed(str(error))
            except UserError as error:
                event = self.failed(str(error))
            if event is not None:
                await asyncio.sleep(settled - clock())
                # Airflow's class is untyped.
                yield TriggerEvent(event)  # type: ignore[no-untyped-call]
                return
            await asyncio.sleep(budget.pause_s)

    async def on_kill(self) -> None:
        """Called when the waiting task is killed or cleared."""
        if self.cancel_on_kill:
            await _in_thread(self.cancel)


def _settle_s() -> float:
    """Seconds after which the process that deferred is known to have ended.

    Its supervisor waits for news of it for up to ``[workers] min_heartbeat_interval`` (5 s by
    default), and may see its end only then. Where the task is running again by that time,
    Airflow takes that end for the end of the new run, and fails it. Never less than what
    suits the default: the workers' configuration may be another than this triggerer's.
    """
    interval_s: int = conf.getint("workers", "min_heartbeat_interval", fallback=0)
    return max(_SETTLE_S, interval_s + _MARGIN_S)


async def _in_thread(function: Callable[[], T]) -> T:
    """Run what waits for the network in one of our own threads: a triggerer has few."""
    # With the trigger's context, by which Airflow tells whose log a line belongs to.
    here = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_THREADS, here.run, function)

"""What all triggers that poll share: the interval, and how many queries in a row may fail."""

from __future__ import annotations

import asyncio
import contextvars
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

from airflow.providers.common.compat.sdk import conf
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_slurm_provider.hooks.slurm import SlurmHook
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.failure_budget import FailureBudget

T = TypeVar("T")

#: Status queries in a row that may fail before the wait ends.
FAILURES_ALLOWED = 20
_LONGEST_PAUSE_S = 60.0
#: The shortest time between the start and an event; see `default_settle_s`.
_SETTLE_S = 7.0
#: Added to Airflow's interval, so that the end of the process can reach the scheduler.
_MARGIN_S = 2.0
_CONNECTIONS = ("slurm_conn_id", "aws_conn_id")
_ARGUMENTS = (*_CONNECTIONS, "poll_interval", "cancel_on_kill", "failures_allowed")
_THREADS = ThreadPoolExecutor(16, thread_name_prefix="slurm-trigger")


class PollBudget(FailureBudget):
    """The budget of status queries in a row that fail, for a wait in a trigger or in a task.

    `poll_interval` is in seconds; `log` gets a line for each failed query.
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
    """Polls at an interval, in threads, until there is an event; fires once.

    Where polling fails for good, the event has the status ``failed``. Parameters without a line
    here are those of the operators' `JobWaiter`.

    :param cancel_on_kill: cancel the array or job when the waiting task is killed or cleared.
    :param failures_allowed: queries in a row that may fail before the task fails.
    :param settle_s: seconds before the first event; where None, see `default_settle_s`.
    """

    #: Names of a subclass's arguments, which are its attributes as well.
    own_arguments: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        *,
        slurm_conn_id: str,
        aws_conn_id: str | None = None,
        poll_interval: float = 10.0,
        cancel_on_kill: bool = False,
        failures_allowed: int = FAILURES_ALLOWED,
        settle_s: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's base is untyped
        self.slurm_conn_id = slurm_conn_id
        self.aws_conn_id = aws_conn_id
        self.poll_interval = poll_interval
        self.cancel_on_kill = cancel_on_kill
        self.failures_allowed = failures_allowed
        self._settle_s = default_settle_s() if settle_s is None else settle_s

    @abstractmethod
    def poll(self) -> dict[str, Any] | None:
        """Query the status once, in a thread: the event to fire, or None to wait on.

        :raises ServiceError: if another query may succeed.
        :raises UserError: if none will.
        """

    @abstractmethod
    def failed(self, message: str) -> dict[str, Any]:
        """The event for queries that failed."""

    @abstractmethod
    def cancel(self) -> None:
        """Cancel the array or job that the task waits for; in a thread."""

    @property
    def hook(self) -> SlurmHook:
        """The connections."""
        return SlurmHook(self.slurm_conn_id, self.aws_conn_id)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments; no credentials."""
        arguments = {name: getattr(self, name) for name in (*self.own_arguments, *_ARGUMENTS)}
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until there is an event."""
        clock = asyncio.get_running_loop().time
        settled = clock() + self._settle_s
        budget = PollBudget(self.poll_interval, self.log, self.failures_allowed)
        while True:
            try:
                event = await _in_thread(self.poll)
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


def default_settle_s() -> float:
    """Seconds after which the process that deferred has surely ended.

    Its supervisor waits for news from it for up to ``[workers] min_heartbeat_interval`` (5 s by
    default), and may see its end only then. If the task is running again by that time, Airflow
    takes that end for the end of the new run, and fails it. Never less than what the default
    needs: the workers' configuration may differ from this triggerer's.
    """
    interval_s: int = conf.getint("workers", "min_heartbeat_interval", fallback=0)
    return max(_SETTLE_S, interval_s + _MARGIN_S)


async def _in_thread(function: Callable[[], T]) -> T:
    """Run a network call in one of our own threads: a triggerer has few."""
    # With the trigger's context, from which Airflow knows the log of a line.
    here = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_THREADS, here.run, function)

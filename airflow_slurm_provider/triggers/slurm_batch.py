"""Waits in the triggerer until a batch job's elements have all ended."""

from __future__ import annotations

from typing import Any

from airflow_slurm_provider.airflow_errors import task_log
from airflow_slurm_provider.slurm.array_state import ArrayKey, ArrayState
from airflow_slurm_provider.slurm.client import SlurmClient
from airflow_slurm_provider.slurm.script import BATCH_FOLDER
from airflow_slurm_provider.triggers.polling import PollingTrigger
from slurm_worker.errors import ServiceError

#: So many last lines of at most so many elements are in the event.
_LINES, _TAILS = 20, 3


class SlurmBatchTrigger(PollingTrigger):
    """Fires once: ``finished`` or ``failed``. `slurm_job_id` and `name` are the array's.

    The other parameters are those of `PollingTrigger`; no connection to AWS is needed.
    """

    own_arguments = ("slurm_job_id", "name")

    def __init__(self, slurm_job_id: str, name: str, **polling: Any) -> None:
        super().__init__(**polling)
        self.slurm_job_id = slurm_job_id
        self.name = name
        self._logged = ""

    def poll(self) -> dict[str, Any] | None:
        """Query the array's state once."""
        array = self.hook.array(ArrayKey(self.slurm_job_id, self.name), self.poll_interval)
        line = array_line(array)
        if line != self._logged:
            self._logged = line
            task_log(self)(line)
        return batch_event(self.hook.get_conn(), self.name, array) if array.ended else None

    def failed(self, message: str) -> dict[str, Any]:
        """The event for queries that failed."""
        return {"status": "failed", "message": message, "states": {}, "output": ""}

    def cancel(self) -> None:
        """Cancel the array."""
        self.hook.get_conn().end(self.name, BATCH_FOLDER)


def array_line(array: ArrayState) -> str:
    """An array in one line for a log."""
    counts = ", ".join(f"{count} {state}" for state, count in sorted(array.counts().items()))
    return f"array {array.slurm_job_id}: {counts or 'not known yet'}"


def batch_event(client: SlurmClient, name: str, array: ArrayState) -> dict[str, Any]:
    """The event for an array that has ended."""
    problem = array.failure()
    return {
        "status": "failed" if problem else "finished",
        "message": problem or array_line(array),
        "states": array.counts(),
        "output": _last_output(client, name, array),
    }


def _last_output(client: SlurmClient, name: str, array: ArrayState) -> str:
    """The last lines of elements that failed; of the first element where none did."""
    shown = []
    for element in (array.failed or sorted(array.elements)[:1])[:_TAILS]:
        try:
            text = client.output(name, BATCH_FOLDER, element, _LINES)
        except ServiceError as error:
            text = str(error)
        shown += [f"{array.slurm_job_id}_{element}: {line}" for line in text.splitlines()]
    return "\n".join(shown)

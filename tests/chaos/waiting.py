"""A task of the stack's Airflow that waits for the chaos job, deferred to the triggerer."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

from tests.stack.airflow_api import AirflowApi, AirflowApiError, DagRun, failing_tasks

DAG_ID = "waits_amid_chaos"
_POLL_S = 1.0


@dataclass
class Waiting:
    """The task's DAG run.

    Args:
        api: of the stack's Airflow.
        run_id: of the run that waits; empty before there is one.
    """

    api: AirflowApi
    run_id: str = ""

    def begin(self, job_id: str) -> None:
        """Make a task wait for the job.

        Raises:
            AirflowApiError: if Airflow does not know the DAG.
        """
        self.api.wait_for_dag(DAG_ID)
        self.run_id = self.api.trigger(DAG_ID, {"job_id": job_id})

    @property
    def deferred(self) -> bool:
        """Whether the task waits in the triggerer now."""
        if self.run_id:
            with suppress(AirflowApiError):
                return any(task.state == "deferred" for task in self._run().tasks)
        return False

    def result(self, seconds: float) -> str:
        """Wait for the run's end; what is wrong with it, if anything."""
        deadline = time.monotonic() + seconds
        while not (run := self._run()).ended:
            if time.monotonic() > deadline:
                return f"{run.summary()}: the task has not resumed after {seconds:.0f} s"
            time.sleep(_POLL_S)
        self.run_id = ""
        if run.state == "success":
            return ""
        logs = "\n".join(self.api.log_tail(run, task) for task in failing_tasks(run))
        return f"{run.summary()}\n{logs}"

    def close(self) -> None:
        """End a run that still waits."""
        if self.run_id:
            self.api.end(DAG_ID, self.run_id)
            self.run_id = ""

    def _run(self) -> DagRun:
        return self.api.run(DAG_ID, self.run_id)

"""`SlurmSubmitOperator` with a script of the user's own, by Airflow's `ResumableJobMixin`.

The mixin keeps the job's id in the task state store. So the next try of a task continues with a
job that still runs, takes the result of one that succeeded, and submits again after one that
failed. The mixin alone submits twice if it dies between ``sbatch`` and the store. Here the store
gets a token first. The token is in the Slurm job's name, and a name is submitted only once
(`slurm.submission`).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowException, TaskDeferred
from airflow.sdk import Context

from airflow_slurm_provider.airflow_errors import as_airflow_failures, task_log
from airflow_slurm_provider.hooks.slurm import SlurmHook
from airflow_slurm_provider.operators.deferral import JobWaiter
from airflow_slurm_provider.slurm.array_state import ArrayKey
from airflow_slurm_provider.slurm.client import SlurmClient, SubmissionCancelledError
from airflow_slurm_provider.slurm.options import SlurmOptions
from airflow_slurm_provider.slurm.remote_folder import new_token
from airflow_slurm_provider.slurm.script import BATCH_FOLDER, batch_name, batch_script
from airflow_slurm_provider.slurm.submission import guarded
from airflow_slurm_provider.triggers.polling import PollBudget
from airflow_slurm_provider.triggers.slurm_batch import SlurmBatchTrigger, array_line, batch_event
from slurm_worker.errors import ServiceError
from slurm_worker.printable import printable_lines

_INTENT = "slurm_submit_intent"

if TYPE_CHECKING:
    from airflow.sdk import ResumableJobMixin
else:
    try:
        from airflow.sdk import ResumableJobMixin
    except ImportError:

        class ResumableJobMixin:
            """The interface of Airflow 3.3. Earlier releases have no store: each try submits again.

            `durable` is accepted, so that a DAG needs no change; nothing is resumed.
            """

            external_id_key = "job"

            def __init__(self, *, durable: bool = True, **kwargs: Any) -> None:
                super().__init__(**kwargs)
                self.durable = durable

            def execute_resumable(self, context: Context) -> Any:
                """Submit, wait, and return the result."""
                job = self.submit_job(context)
                self.poll_until_complete(job, context)
                return self.get_job_result(job, context)


class BatchScriptOperator(ResumableJobMixin, JobWaiter):
    """Submit a script once, and wait for its elements.

    The parameters are those of `SlurmSubmitOperator`.
    """

    external_id_key = "slurm_job"
    #: End only when every element has ended.
    wait_for_completion: bool

    def __init__(
        self,
        *,
        script: str | None = None,
        command: str | Sequence[str] | None = None,
        array: str | int | None = None,
        slurm: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.script = script
        self.command = command
        self.array = array
        self.slurm = slurm
        self.env = env
        #: The name of the array that this process submits or waits for.
        self._batch = ""
        self._killed = False

    def submit_job(self, context: Context) -> Any:
        """Submit the script, or find the array that an earlier try submitted."""
        with as_airflow_failures():
            try:
                found = self._submit_as(self._token(context), context)
            except SubmissionCancelledError:
                if self._killed:
                    raise
                # The name belongs to a try that was killed: no array will have it.
                found = self._submit_as(self._token(context, renew=True), context)
        self.log.info("submitted array %(slurm_job_id)s as %(slurm_job_name)s", found)
        context["ti"].xcom_push(key="submission", value=found)
        return found

    def get_job_status(self, external_id: Any, context: Context) -> str:  # noqa: ARG002
        """RUNNING, COMPLETED or FAILED, of the array as a whole."""
        with as_airflow_failures():
            key = ArrayKey(external_id["slurm_job_id"], external_id["slurm_job_name"])
            array = self._client().array(key)
        if not array.ended:
            return "RUNNING"
        return "FAILED" if array.failure() else "COMPLETED"

    def is_job_active(self, status: str) -> bool:
        """Whether to continue with it."""
        return status == "RUNNING"

    def is_job_succeeded(self, status: str) -> bool:
        """Whether there is nothing left to do."""
        return status == "COMPLETED"

    def poll_until_complete(self, external_id: Any, context: Context) -> Any:
        """Wait here or in the triggerer, if the task is to wait."""
        slurm_job_id, name = external_id["slurm_job_id"], external_id["slurm_job_name"]
        self._batch = name
        if self.batch_script is None:
            # An earlier try submitted it.
            with as_airflow_failures():
                self.batch_script = self._client().script(name, BATCH_FOLDER) or None
        if not self.wait_for_completion:
            return slurm_job_id
        if self.deferrable:
            raise TaskDeferred(
                trigger=SlurmBatchTrigger(
                    slurm_job_id=slurm_job_id,
                    name=name,
                    slurm_conn_id=self.slurm_conn_id,
                    poll_interval=self.poll_interval,
                    cancel_on_kill=self.cancel_on_kill,
                ),
                method_name="batch_complete",
                kwargs={"slurm_job_id": slurm_job_id, "batch_script": self.batch_script},
            )
        event = self._wait(ArrayKey(slurm_job_id, name))
        return self.batch_complete(context, event, slurm_job_id, self.batch_script)

    def batch_complete(
        self,
        context: Context,  # noqa: ARG002  Airflow's signature
        event: dict[str, Any],
        slurm_job_id: str,
        batch_script: str | None = None,
    ) -> str:
        """Continue when all elements have ended; return the array's id.

        :raises AirflowException: if an element did not complete.
        """
        # Airflow has rendered the task's fields again.
        self.batch_script = batch_script
        log = task_log(self)
        for line in event["output"].splitlines():
            log(line)
        if event["status"] != "finished":
            raise AirflowException(printable_lines(event["message"]))
        log(event["message"])
        return slurm_job_id

    def get_job_result(self, external_id: Any, context: Context) -> str:  # noqa: ARG002
        """The array's id."""
        return str(external_id["slurm_job_id"])

    def on_kill(self) -> None:
        """Cancel the array that this process has submitted or found, or is about to submit."""
        if self.cancel_on_kill:
            self._killed = True
            if self._batch:
                self._client().end(self._batch, BATCH_FOLDER)
        super().on_kill()

    def _wait(self, key: ArrayKey) -> dict[str, Any]:
        """Wait in this process for the event that ends the wait."""
        client, logged = self._client(), ""
        budget = PollBudget(self.poll_interval, self.log)
        while True:
            try:
                array = client.array(key)
            except ServiceError as error:
                if not budget.allow_error(error):
                    raise AirflowException(str(error)) from error
            else:
                budget.reset()
                line = array_line(array)
                if line != logged:
                    logged = line
                    task_log(self)(line)
                if array.ended:
                    return batch_event(client, key.name, array)
            time.sleep(budget.pause_s)  # not deferrable: this process is to wait

    def _submit_as(self, token: str, context: Context) -> dict[str, str]:
        ti = context["ti"]
        mapped = f".{ti.map_index}" if ti.map_index is not None and ti.map_index >= 0 else ""
        name = batch_name(f"{ti.dag_id}.{ti.task_id}{mapped}", token)
        self.batch_script = script = self._render_batch(name)
        task_log(self)(f"::group::Batch script\n{script}\n::endgroup::")
        self._batch = name
        slurm_job_id = self._client().submit(name, script, BATCH_FOLDER)
        return {"slurm_job_id": slurm_job_id, "slurm_job_name": name}

    def _render_batch(self, name: str) -> str:
        body = self.script
        if body is None:
            words = self.command or ""
            body = words if isinstance(words, str) else shlex.join(map(str, words))
        script = batch_script(
            SlurmOptions.from_mapping(self.slurm or {}),
            name=name,
            array=str(0 if self.array is None else self.array),
            body=body,
            environment=self.env or {},
        )
        return guarded(script)

    def _token(self, context: Context, *, renew: bool = False) -> str:
        """The token of an interrupted try; otherwise a new one, stored before it is used."""
        store = context.get("task_state_store")
        if not self.durable or store is None:
            return new_token()
        after = store.get(self.external_id_key)
        intent = store.get(_INTENT)
        if isinstance(intent, dict) and intent.get("after") == after and not renew:
            return str(intent["token"])
        token = new_token()
        store.set(_INTENT, {"token": token, "after": after})
        return token

    def _client(self) -> SlurmClient:
        return SlurmHook(self.slurm_conn_id, None).get_conn()

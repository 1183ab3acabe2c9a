"""Plan a backfill and submit its workers; or submit a batch script as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from airflow.sdk import BaseOperator, Context

from airflow_slurm_provider.airflow_errors import as_airflow_failures, task_log
from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.planning.inline_items import config_with_items
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config, load_config
from airflow_slurm_provider.hooks.slurm import SlurmHook
from airflow_slurm_provider.links import BackfillLink, JobObjectsLink
from airflow_slurm_provider.operators.batch import BatchJobMixin
from airflow_slurm_provider.operators.deferral import (
    CancelsOnKill,
    Notifier,
    actor_of,
    defer_until_done,
    hear_anomalies,
    progress_of,
    show_kept_script,
    show_script,
    wait_until_done,
)
from slurm_worker.errors import UserError

_KINDS = ("config", "script", "command")
_OF_BACKFILLS = ("job_id", "items", "item_key")
_OF_SCRIPTS = ("array", "slurm", "env")


class SlurmSubmitOperator(BatchJobMixin, CancelsOnKill, BaseOperator):
    """Plan the items of a config and submit one array of workers; return the job id.

    Running it again at any point (a retry, a cleared task, after a crash) goes on where the
    last run was cut short: the plan is conditional writes, and the array is found again by
    the token that was written before ``sbatch``.

    With `script` or `command` it submits any batch job instead, waits for its elements and
    returns the array's id; needs no AWS. See `BatchJobMixin` for what a retry does.

    :param config: path of the job's YAML, or the mapping that it would hold. (templated)
    :param job_id: stands in for the config's ``job_id``. (templated)
    :param items: what to run instead of the config's ``input``: objects, strings or integers,
        such as the result of another task; a JSON list as text; or a table of pandas, polars or
        Arrow, whose rows become objects (NaN as None, dates as ISO text). (templated)
    :param item_key: the field that names each object in `items`; ``id`` where None.
    :param script: a batch script's text; its own ``#SBATCH`` lines count where `slurm` says
        nothing else. (templated)
    :param command: a shell line, or a list of words, instead of a script. (templated)
    :param array: elements of a script's array: ``"0-99%10"``; one where None. (templated)
    :param slurm: a script's options, as in a config's ``slurm`` section. (templated)
    :param env: variables for a script; no secrets. (templated)
    :param slurm_conn_id: connection of type ``slurm``.
    :param aws_conn_id: connection of type ``aws``.
    :param wait_for_completion: end only when every task has ended; of itself so for a script.
    :param deferrable: wait in the triggerer.
    :param poll_interval: seconds between two looks while waiting.
    :param cancel_on_kill: cancel the array when this task is killed while it waits.
    :param max_resubmissions: arrays of new workers that a round may get when its workers are
        gone and tasks are left; then the task fails with the reason.
    :param on_anomaly: notifiers that are run when something is wrong with the job while this
        task waits for it; their context has the ``alert``.
    :param durable: for a script: a retry goes on with an array that still runs.
    """

    #: `batch_script` is shown there, once it is known; it is no argument.
    template_fields: Sequence[str] = (
        *("config", "job_id", "items"),
        *("script", "command", "array", "slurm", "env"),
        "batch_script",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "config": "yaml",
        "script": "bash",
        "command": "bash",
        "slurm": "json",
        "env": "json",
        "batch_script": "bash",
    }
    overwrite_rtif_after_execution = True
    operator_extra_links = (BackfillLink(), JobObjectsLink())

    def __init__(
        self,
        *,
        config: str | Mapping[str, Any] | None = None,
        job_id: str | None = None,
        items: object = None,
        item_key: str | None = None,
        script: str | None = None,
        command: str | Sequence[str] | None = None,
        array: str | int | None = None,
        slurm: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        slurm_conn_id: str = "slurm_default",
        aws_conn_id: str | None = "aws_default",
        wait_for_completion: bool | None = None,
        deferrable: bool = True,
        poll_interval: float = 10.0,
        cancel_on_kill: bool = False,
        max_resubmissions: int = 3,
        on_anomaly: Sequence[Notifier] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.job_id = job_id
        self.items = items
        self.item_key = item_key
        self.script = script
        self.command = command
        self.array = array
        self.slurm = slurm
        self.env = env
        self.slurm_conn_id = slurm_conn_id
        self.aws_conn_id = aws_conn_id
        runs_script = script is not None or command is not None
        self.wait_for_completion = (
            runs_script if wait_for_completion is None else wait_for_completion
        )
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.cancel_on_kill = cancel_on_kill
        self.max_resubmissions = max_resubmissions
        self.on_anomaly = on_anomaly
        self.batch_script: str | None = None

    @property
    def backfill(self) -> str:
        """The job that `BackfillLink` leads to; empty before it is submitted."""
        return self.awaited

    def execute(self, context: Context) -> Any:
        """Plan, submit, and wait if asked to; the job id, or the array's for a script."""
        with as_airflow_failures():
            runs_script = self._runs_script()
        if runs_script:
            return self.execute_resumable(context)
        result = self._submit(context)
        state = show_script(self, result.job_id)
        if self.wait_for_completion:
            if self.deferrable:
                defer_until_done(self, result.job_id, state)
            wait_until_done(self, context, result.job_id)
        return result.job_id

    def _submit(self, context: Context) -> api.SubmitResult:
        with as_airflow_failures():
            config = self._config()
            services = self._services()
            result = api.submit(services, config, log=task_log(self), actor=actor_of(context))
            self.awaited = result.job_id
            context["ti"].xcom_push(key="submission", value=result.to_dict())
            JobObjectsLink.persist(context, services, config.spec.id)
            BackfillLink.persist(context, self)
        return result

    def _services(self) -> Services:
        return SlurmHook(self.slurm_conn_id, self.aws_conn_id).services()

    def _runs_script(self) -> bool:
        given = [name for name in _KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise UserError(
                f"SlurmSubmitOperator: is given {' and '.join(given) or 'nothing to run'}; "
                f"give one of {', '.join(_KINDS)}"
            )
        backfills = [name for name in _OF_BACKFILLS if getattr(self, name) is not None]
        scripts = [name for name in _OF_SCRIPTS if getattr(self, name) is not None]
        wrong = scripts if self.config is not None else backfills
        if wrong:
            raise UserError(
                f"{wrong[0]}: does not go with {given[0]}; "
                + (
                    "write it into the config's slurm section"
                    if wrong[0] == "slurm"
                    else "leave it out"
                )
            )
        return self.config is None

    def _config(self) -> Config:
        assert self.config is not None, "what is given was looked at"
        if self.items is None:
            return load_config(self.config, job_id=self.job_id)
        return config_with_items(
            self._services(), self.config, self.job_id, self.items, self.item_key
        )

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on when the trigger has fired; the job id."""
        return str(self._resume(context, event)["job_id"])

    def _resume(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """The job's progress from the trigger's event, as long as there is nothing to wait for."""
        self.awaited = event.get("job_id", "")
        show_kept_script(self, event)
        hear_anomalies(self, context, event)
        return progress_of(event)

    def on_kill(self) -> None:
        """Cancel the array, when asked to and when this task submitted it."""
        if self.cancel_on_kill:
            self.cancel_batch()
        super().on_kill()

"""Plan a backfill and submit its workers, or submit a batch script as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from airflow.sdk import Context

from airflow_slurm_provider.airflow_errors import as_airflow_failures, task_log
from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.planning.inline_items import config_with_items
from airflow_slurm_provider.coordinator.spec.job_spec import Config, load_config
from airflow_slurm_provider.links import BackfillLink, JobObjectsLink
from airflow_slurm_provider.operators.batch import BatchScriptOperator
from airflow_slurm_provider.operators.deferral import JobWaiter, actor_of, progress_of
from slurm_worker.errors import UserError

_KINDS = ("config", "script", "command")
_BACKFILL_ONLY = ("job_id", "items", "item_key")
_SCRIPT_ONLY = ("array", "slurm", "env")


class BackfillOperator(JobWaiter):
    """Submit the job of a config. The parameters are those of `SlurmSubmitOperator`."""

    def __init__(
        self,
        *,
        config: str | Mapping[str, Any] | None = None,
        job_id: str | None = None,
        items: object = None,
        item_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.job_id = job_id
        self.items = items
        self.item_key = item_key

    def build_config(self) -> Config:
        """The job's configuration, checked."""
        assert self.config is not None, "the arguments were checked"
        if self.items is None:
            return load_config(self.config, job_id=self.job_id)
        return config_with_items(
            self.services(), self.config, self.job_id, self.items, self.item_key
        )

    def submit_backfill(self, context: Context) -> tuple[str, dict[str, Any]]:
        """Plan and submit; the job id, and the state to keep while deferred."""
        with as_airflow_failures():
            config = self.build_config()
            services = self.services()
            result = api.submit(services, config, log=task_log(self), actor=actor_of(context))
            self.awaited = result.job_id
            context["ti"].xcom_push(key="submission", value=result.to_dict())
            JobObjectsLink.persist(context, services, config.spec.id)
            BackfillLink.persist(context, self)
        return result.job_id, self.show_script(result.job_id)

    def backfill_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """The job's progress from the trigger's event, or another wait after an anomaly."""
        self.awaited = event.get("job_id", "")
        self.show_kept_script(event)
        self.handle_anomalies(context, event)
        return progress_of(event)


class SlurmSubmitOperator(BatchScriptOperator, BackfillOperator):
    """Plan the items of a config and submit one array of workers; return the job id.

    It is safe to run again at any point (a retry, a cleared task, after a crash) and continues
    where the last run stopped. The plan consists of conditional writes, and the array is found
    again by the token that was written before ``sbatch``.

    With `script` or `command` it submits any batch job instead, waits for its elements and
    returns the array's id. This needs no AWS. A retry continues with an array that still runs,
    takes the result of one that succeeded, and submits again after one that failed.

    The connections and the wait have the parameters of `JobWaiter`.

    :param config: path of the job's YAML, or the mapping that it would hold. (templated)
    :param job_id: replaces the config's ``job_id``. (templated)
    :param items: items to run instead of the config's ``input``: objects, strings or integers,
        such as the result of another task; a JSON list as text; or a table of pandas, polars or
        Arrow, whose rows become objects (NaN as None, dates as ISO text). (templated)
    :param item_key: the field that names each object in `items`; ``id`` where None.
    :param script: a batch script's text. Where `slurm` sets nothing else, its own ``#SBATCH``
        lines count. (templated)
    :param command: a shell line, or a list of words, instead of a script. (templated)
    :param array: elements of a script's array: ``"0-99%10"``; one where None. (templated)
    :param slurm: a script's options, as in a config's ``slurm`` section. (templated)
    :param env: variables for a script; no secrets. (templated)
    :param wait_for_completion: end only when every task of the backfill, or every element of the
        script, has ended. By default the operator waits for a script, not for a backfill.
    :param durable: for a script: a retry continues with an array that still runs.
    """

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

    def __init__(self, *, wait_for_completion: bool | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        runs_script = self.script is not None or self.command is not None
        self.wait_for_completion = (
            runs_script if wait_for_completion is None else wait_for_completion
        )

    def execute(self, context: Context) -> Any:
        """Submit, and wait if the task is to wait; the job id, or the array's id for a script."""
        with as_airflow_failures():
            self._check_arguments()
        if self.config is None:
            return self.execute_resumable(context)
        job_id, state = self.submit_backfill(context)
        if self.wait_for_completion:
            if self.deferrable:
                self.defer_until_done(job_id, state)
            self.wait_until_done(context, job_id)
        return job_id

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Continue when the trigger has fired; the job id."""
        return str(self.backfill_complete(context, event)["job_id"])

    def _check_arguments(self) -> None:
        given = self._given(_KINDS)
        if len(given) != 1:
            raise UserError(
                f"SlurmSubmitOperator: {' and '.join(given) or 'nothing to run'} given; give "
                f"exactly one of {', '.join(_KINDS)}"
            )
        wrong = self._given(_BACKFILL_ONLY if self.config is None else _SCRIPT_ONLY)
        if wrong:
            what = "move it into the config" if wrong[0] == "slurm" else "remove it"
            raise UserError(f"{wrong[0]}: can't be used with {given[0]}; {what}")

    def _given(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if getattr(self, name) is not None]

"""``@task.slurm_map``: a function and a list, or a file, become a backfill.

    @task.slurm_map(job_id="squares-{{ ds_nodash }}", workers=4)
    def square(item):
        return {"square": item * item}


    square(range(1000))

The function's source is shipped to the nodes, so what it needs is imported inside it, as
with ``@task.virtualenv``.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    DecoratedOperator,
    TaskDecorator,
    task_decorator_factory,
)
from airflow.sdk import Context

from airflow_slurm_provider.coordinator import job
from airflow_slurm_provider.coordinator.config import Config, parse_config
from airflow_slurm_provider.coordinator.given import VALUE_FIELD, put_items
from airflow_slurm_provider.failures import as_airflow_failures, task_log
from airflow_slurm_provider.operators.parquet_aggregate import PUBLISHED, emit_assets
from airflow_slurm_provider.operators.slurm_submit import SlurmSubmitOperator
from airflow_slurm_provider.waiting import (
    actor_of,
    defer_until_done,
    show_script,
    wait_until_done,
)
from slurm_worker.errors import UserError
from slurm_worker.keys import check_job_id

_MODULE = "slurm_map_handler"
_SHIPPED = """\
{source}

def handle(item, context):
    given = item[{value!r}] if {plain} else item
    return {name}(given{context})
"""


class SlurmMapOperator(DecoratedOperator, SlurmSubmitOperator):
    """Runs the decorated function for each item on the cluster, and publishes the dataset.

    Called with a list (of objects, strings or integers; another task's result will do) or
    with the path of a file, local or on S3. The function takes the item and, if it has a
    second parameter (``context=None``), the handler's context. Returns counts and the
    dataset's address.

    :param job_id: the backfill's name. (templated)
    :param item_key: the field that names each item; ``id`` where None.
    :param workers: elements of the array.
    :param bundle: items per task.
    :param options: further sections of the job's config: ``slurm``, ``limits``, ``worker`` …
    :param max_failed_items: more failed items than this fail the task, which can be run again.
    """

    custom_operator_name: str = "@task.slurm_map"
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *("job_id", "options", "batch_script"),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        "batch_script": "bash",
    }

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        job_id: str,
        workers: int = 1,
        bundle: int = 500,
        options: Mapping[str, Any] | None = None,
        max_failed_items: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            # Airflow binds the arguments to the signature, and it is called with one: the items.
            python_callable=python_callable,
            op_args=[*(op_args or []), *(op_kwargs or {}).values()],
            config={},
            job_id=job_id,
            wait_for_completion=True,
            **kwargs,
        )
        self.workers = workers
        self.bundle = bundle
        self.options = options or {}
        self.max_failed_items = max_failed_items

    def execute(self, context: Context) -> dict[str, Any]:
        """Plan, submit and wait; then publish."""
        result = self._submit(context)
        state = show_script(self, result.job_id)
        if self.deferrable:
            defer_until_done(self, result.job_id, state)
        return self._publish(context, wait_until_done(self, context, result.job_id))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Publish when the trigger has fired."""
        return self._publish(context, self._resume(context, event))

    def _publish(self, context: Context, progress: dict[str, Any]) -> dict[str, Any]:
        failed = sum(progress["failed"].values())
        if failed > self.max_failed_items:
            raise AirflowFailException(
                f"{failed} of {progress['items']} items failed: {progress['failed']}; see "
                f"slurmctl status {progress['job_id']}, or allow for them with max_failed_items"
            )
        with as_airflow_failures():
            services = self._services()
            job_id = check_job_id(progress["job_id"])
            manifest = job.aggregate(services, job_id, log=task_log(self), actor=actor_of(context))
            address = f"s3://{services.site.bucket}/{services.paths(job_id).dataset}"
        result = {"job_id": job_id, **{name: manifest[name] for name in PUBLISHED}}
        emit_assets(self, context, address, result)
        return result

    def _config(self) -> Config:
        if len(self.op_args) != 1:
            raise UserError(
                f"{self.task_id}: called with {len(self.op_args)} arguments; call it with the "
                "items, or with the path of a file that holds them"
            )
        (given,) = self.op_args
        name = check_job_id(str(self.job_id), "job_id")
        if isinstance(given, str):
            items, plain = {"path": given, "key": self.item_key or "id"}, False
        else:
            things = list(given)
            plain = not any(isinstance(each, Mapping) for each in things)
            items = put_items(self._services(), name, things, self.item_key)
        # Removed with this process: it is shipped before that.
        self._folder = tempfile.TemporaryDirectory(prefix="slurm-map-")
        (Path(self._folder.name) / f"{_MODULE}.py").write_text(self._source(plain=plain))
        return parse_config(
            {
                **self.options,
                "job_id": name,
                "input": items,
                "workers": self.workers,
                "bundle": self.bundle,
                "handler": {"entry": f"{_MODULE}:handle", "code": self._folder.name},
            },
            {},
        )

    def _source(self, *, plain: bool) -> str:
        takes_context = len(inspect.signature(self.python_callable).parameters) > 1
        return _SHIPPED.format(
            source=self.get_python_source(),  # type: ignore[no-untyped-call]  # Airflow's
            name=self.python_callable.__name__,
            value=VALUE_FIELD,
            plain=plain,
            context=", context" if takes_context else "",
        )


def slurm_map_task(
    python_callable: Callable[..., Any] | None = None, **kwargs: Any
) -> TaskDecorator:
    """Wrap a function into a `SlurmMapOperator`.

    :param python_callable: the function to decorate.
    """
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=SlurmMapOperator, **kwargs
    )

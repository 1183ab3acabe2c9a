"""``@task.slurm_map``: a function and a list, or a file, become a backfill.

    @task.slurm_map(job_id="squares-{{ ds_nodash }}", workers=4)
    def square(item):
        return {"square": item * item}


    square(range(1000))

The function's source is shipped to the nodes. Therefore it must import everything that it needs
inside, as with ``@task.virtualenv``. A function that can't be shipped or called with an item is
refused when the DAG is parsed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    DecoratedOperator,
    TaskDecorator,
    task_decorator_factory,
)
from airflow.sdk import Context

from airflow_slurm_provider.coordinator.planning.inline_items import (
    VALUE_FIELD,
    path_or_items,
    put_items,
)
from airflow_slurm_provider.coordinator.spec.job_spec import Config, parse_config
from airflow_slurm_provider.decorators.source import source_of
from airflow_slurm_provider.links import BackfillLink, JobObjectsLink
from airflow_slurm_provider.operators.parquet_aggregate import publish_dataset
from airflow_slurm_provider.operators.slurm_submit import BackfillOperator
from slurm_worker.errors import UserError
from slurm_worker.execution.signatures import ContextPassing, is_coroutine
from slurm_worker.protocol.keys import check_job_id

#: Arguments of other operators that can't work here, and what to do instead.
_REFUSED = {
    "config": "give its sections in options, and the items in the call",
    "items": "call the function with the items",
    "slurm": "use options={'slurm': {...}}",
    "env": "export variables in options={'slurm': {'setup': [...]}}",
}
#: Sections of a config that the decorator writes itself.
_OWN = {
    "job_id": "use the argument job_id",
    "workers": "use the argument workers",
    "bundle": "use the argument bundle",
    "input": "call the function with the items, or with the path of a file",
    "handler": "the function is the handler",
}
_MODULE = "slurm_map_handler"
#: A module of its own, so that no name of the function hides one of ours.
_FUNCTION_MODULE = "slurm_map_function"
_SHIPPED = """\
from {module} import {name} as function


{begin} handle(item, context):
    return {wait}function({item}{context})
"""
_CONTEXT = {
    ContextPassing.NOTHING: "",
    ContextPassing.SECOND: ", context",
    ContextPassing.BY_NAME: ", context=context",
}


class SlurmMapOperator(DecoratedOperator, BackfillOperator):
    """Runs the decorated function for each item on the cluster, and publishes the dataset.

    Call it with the items: a list of objects, strings or integers, such as another task's result;
    a JSON list as text; or a table of pandas, polars or Arrow, whose rows become objects. Or call
    it with the path of a file, local or on S3. The function's first parameter is the item. A
    parameter named ``context`` receives the handler's context; others keep their defaults.
    Returns ``job_id``, ``dataset``, ``manifest``, ``items``, ``ok``, ``failed`` (by error class),
    ``rows`` and ``files`` (the number of the dataset's files).

    The connections and the wait have the parameters of `JobWaiter`. ``durable`` is accepted, but
    only True can work: a backfill always continues where an earlier try has stopped.

    :param job_id: the backfill's name. (templated)
    :param item_key: the field that names each item; ``id`` where None.
    :param workers: elements of the array.
    :param bundle: items per task.
    :param options: more sections of the job's config: ``slurm``, ``limits``, ``worker`` …
    :param max_failed_items: more failed items than this fail the task. It can be run again.
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
    overwrite_rtif_after_execution = True
    operator_extra_links = (BackfillLink(), JobObjectsLink())

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
        source_of(python_callable)
        _check_arguments(options, kwargs)
        kwargs.pop("durable", None)
        given = [*(op_args or []), *(op_kwargs or {}).values()]
        if len(given) != 1 and not kwargs.get("_airflow_mapped_validation_only"):
            raise UserError(
                f"@task.slurm_map: {python_callable.__name__} is called with {len(given)} "
                "arguments; call it with the items, or with the path of a file that holds them"
            )
        super().__init__(
            # Airflow binds the arguments to the signature, so it needs one with a single argument.
            python_callable=_takes_items,
            op_args=given,
            job_id=job_id,
            **kwargs,
        )
        self.python_callable = python_callable
        self.workers = workers
        self.bundle = bundle
        self.options = options or {}
        self.max_failed_items = max_failed_items
        #: The code to upload; removed with this process.
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Plan, submit and wait; then publish."""
        job_id, state = self.submit_backfill(context)
        if self.deferrable:
            self.defer_until_done(job_id, state)
        return self.publish(context, self.wait_until_done(context, job_id))

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Publish when the trigger has fired."""
        return self.publish(context, self.backfill_complete(context, event))

    def publish(self, context: Context, progress: dict[str, Any]) -> dict[str, Any]:
        """Publish the dataset of a job that has ended; its counts and address."""
        failed = sum(progress["failed"].values())
        if failed > self.max_failed_items:
            raise AirflowFailException(
                f"{failed} of {progress['items']} items failed: {progress['failed']}; see "
                f"slurmctl errors {progress['job_id']}, or raise max_failed_items"
            )
        job_id = progress["job_id"]
        return {"job_id": job_id, **publish_dataset(self, context, job_id)}

    def build_config(self) -> Config:
        """A configuration whose handler is the function, and whose input are the items."""
        (given,) = self.op_args
        name = check_job_id(str(self.job_id), "job_id")
        found = path_or_items(given)
        if isinstance(found, str):
            items, plain = {"path": found, "key": self.item_key or "id"}, False
        else:
            items = put_items(self.services(), name, found, self.item_key)
            plain = not isinstance(found[0], Mapping)
        self._folder = tempfile.TemporaryDirectory(prefix="slurm-map-")
        for module, source in self.sources(plain=plain).items():
            (Path(self._folder.name) / f"{module}.py").write_text(source, encoding="utf-8")
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

    def sources(self, *, plain: bool) -> dict[str, str]:
        """The modules to ship, by their names."""
        source, takes = source_of(self.python_callable)
        waits = is_coroutine(self.python_callable)
        handler = _SHIPPED.format(
            module=_FUNCTION_MODULE,
            name=self.python_callable.__name__,
            begin="async def" if waits else "def",
            wait="await " if waits else "",
            item=f"item[{VALUE_FIELD!r}]" if plain else "item",
            context=_CONTEXT[takes],
        )
        return {_MODULE: handler, _FUNCTION_MODULE: source}


def slurm_map_task(
    python_callable: Callable[..., Any] | None = None, **kwargs: Any
) -> TaskDecorator:
    """Wrap a function into a `SlurmMapOperator`."""
    if python_callable is None:
        decorate: TaskDecorator = partial(slurm_map_task, **kwargs)  # type: ignore[assignment]  # is called with the function
        return decorate
    _check_arguments(kwargs.get("options"), kwargs)
    if callable(python_callable):
        source_of(python_callable)
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=SlurmMapOperator, **kwargs
    )


def _check_arguments(options: object, others: Mapping[str, Any]) -> None:
    """Refuse arguments that would have no effect."""
    if not others.get("durable", True):
        raise UserError(
            "@task.slurm_map: durable=False can't work, because a backfill always continues where "
            "an earlier try has stopped; remove it, and use another job_id for a new backfill"
        )
    for name, advice in _REFUSED.items():
        if name in others:
            raise UserError(f"@task.slurm_map: {name} can't be used; {advice}")
    for name, advice in _OWN.items():
        if isinstance(options, Mapping) and name in options:
            raise UserError(f"@task.slurm_map: options can't set {name}; {advice}")


def _takes_items(_items: object) -> None:
    """What Airflow binds the arguments of a call to."""

"""Try failed items again, by error class, until nothing retryable is left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar

from airflow.sdk import BaseOperator, Context

from airflow_slurm_provider.airflow_errors import as_airflow_failures, task_log
from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.hooks.slurm import SlurmHook
from airflow_slurm_provider.links import BackfillLink
from airflow_slurm_provider.operators.deferral import (
    CancelsOnKill,
    Notifier,
    actor_of,
    defer_until_done,
    hear_anomalies,
    look,
    progress_of,
    show_kept_script,
    show_script,
    wait_until_done,
)
from slurm_worker.protocol.keys import check_job_id


class RetryByErrorClassOperator(CancelsOnKill, BaseOperator):
    """Plan a round of the items that failed with some classes, submit it, and wait for it.

    Only the failed items run again. Safe to run again at any point: a round that was begun
    is finished, never doubled. Returns its rounds, and by error class what they tried again, what
    the job's retries have cured, and what is given up.

    :param job_id: the backfill. (templated)
    :param errors: error classes to try again; by the retry policy where None. (templated)
    :param policy: rules by error class, as under ``retry`` in the job's YAML; they go over the
        job's own: ``{"out_of_memory": {"mem": "x2 up to 64G"}, "timeout": "never"}``. (templated)
    :param until_clean: go on round by round until nothing retryable is left.
    :param max_rounds: the most rounds that this task starts.
    :param max_items: the most items that its rounds may have together.
    :param max_duration: no round is started after so long, in seconds or as a timedelta.
    :param slurm_conn_id: connection of type ``slurm``.
    :param aws_conn_id: connection of type ``aws``.
    :param deferrable: wait in the triggerer.
    :param poll_interval: seconds between two looks while waiting.
    :param cancel_on_kill: cancel the arrays when this task is killed while it waits.
    :param max_resubmissions: arrays of new workers that a round may get when its workers are
        gone and tasks are left; then the task fails with the reason.
    :param on_anomaly: notifiers that are run when something is wrong with the job while this
        task waits; their context has the ``alert``.
    """

    #: `batch_script` is shown there, once it is known; it is no argument.
    template_fields: Sequence[str] = ("job_id", "errors", "policy", "batch_script")
    template_fields_renderers: ClassVar[dict[str, str]] = {"batch_script": "bash"}
    overwrite_rtif_after_execution = True
    operator_extra_links = (BackfillLink(),)

    def __init__(
        self,
        *,
        job_id: str,
        errors: list[str] | None = None,
        policy: Mapping[str, Any] | None = None,
        until_clean: bool = True,
        max_rounds: int = 5,
        max_items: int | None = None,
        max_duration: float | timedelta | None = None,
        slurm_conn_id: str = "slurm_default",
        aws_conn_id: str | None = "aws_default",
        deferrable: bool = True,
        poll_interval: float = 10.0,
        cancel_on_kill: bool = False,
        max_resubmissions: int = 3,
        on_anomaly: Sequence[Notifier] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job_id = job_id
        self.errors = errors
        self.policy = policy
        self.until_clean = until_clean
        self.max_rounds = max_rounds
        self.max_items = max_items
        self.max_duration = (
            max_duration.total_seconds() if isinstance(max_duration, timedelta) else max_duration
        )
        self.slurm_conn_id = slurm_conn_id
        self.aws_conn_id = aws_conn_id
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.cancel_on_kill = cancel_on_kill
        self.max_resubmissions = max_resubmissions
        self.on_anomaly = on_anomaly
        self.batch_script: str | None = None

    @property
    def backfill(self) -> str:
        """The job that `BackfillLink` leads to."""
        return self.job_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the first round."""
        BackfillLink.persist(context, self)
        return self._rounds(context, {"rounds": [], "retried": {}, "began": time.time()})

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """A round has ended: start the next one, or say what came of it."""
        show_kept_script(self, event)
        hear_anomalies(self, context, event)
        progress_of(event)
        return self._rounds(context, event["state"])

    def _rounds(self, context: Context, state: dict[str, Any]) -> dict[str, Any]:
        allowed = self.max_rounds if self.until_clean else 1
        while len(state["rounds"]) < allowed and self._has_time(state):
            result = self._retry(context, state)
            if result.round is None:
                self.log.info("nothing to run again; given up: %s", result.given_up or "none")
                break
            state = {**_with_round(state, result), **show_script(self, self.job_id)}
            self.log.info("round %d tries %s again", result.round, result.items)
            if self.deferrable and look(self, context, self.job_id) is None:
                defer_until_done(self, self.job_id, state)
            wait_until_done(self, context, self.job_id)
        return self._summary(state)

    def _has_time(self, state: dict[str, Any]) -> bool:
        return self.max_duration is None or time.time() - state["began"] < self.max_duration

    def _retry(self, context: Context, state: dict[str, Any]) -> api.RetryResult:
        spent = sum(state["retried"].values())
        with as_airflow_failures():
            services = SlurmHook(self.slurm_conn_id, self.aws_conn_id).services()
            return api.retry(
                services,
                check_job_id(self.job_id),
                self.errors,
                policy=self.policy,
                max_items=None if self.max_items is None else self.max_items - spent,
                log=task_log(self),
                actor=actor_of(context),
            )

    def _summary(self, state: dict[str, Any]) -> dict[str, Any]:
        with as_airflow_failures():
            services = SlurmHook(self.slurm_conn_id, self.aws_conn_id).services()
            job_id = check_job_id(self.job_id)
            progress = api.progress(services, job_id)
            cured = api.cured(services, job_id)
        return {
            "rounds": state["rounds"],
            "retried": state["retried"],
            "cured": cured,
            "given_up": progress.failed,
            "ok": progress.ok,
        }


def _with_round(state: dict[str, Any], result: api.RetryResult) -> dict[str, Any]:
    """The state with one more round; a round seen before (reattached) counts once."""
    if result.round in state["rounds"]:
        return state
    retried = dict(state["retried"])
    for name, count in result.items.items():
        retried[name] = retried.get(name, 0) + count
    return {**state, "rounds": [*state["rounds"], result.round], "retried": retried}

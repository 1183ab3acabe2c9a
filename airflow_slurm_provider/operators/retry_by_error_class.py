"""Try failed items again, by error class, until nothing retryable is left."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar

from airflow.sdk import Context

from airflow_slurm_provider.airflow_errors import as_airflow_failures, task_log
from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.status.failures import cured_by_class
from airflow_slurm_provider.coordinator.status.progress import read_progress
from airflow_slurm_provider.links import BackfillLink
from airflow_slurm_provider.operators.deferral import JobPoller, JobWaiter, actor_of, progress_of
from slurm_worker.protocol.keys import check_job_id


class RetryByErrorClassOperator(JobWaiter):
    """Plan a round of the items that failed with some classes, submit it, and wait for it.

    Only the failed items run again. It is safe to run again at any point: a round that was begun
    is finished, never doubled. Returns its rounds, and by error class how many items they tried
    again, how many the job's retries have cured, and how many are given up.

    The connections and the wait have the parameters of `JobWaiter`.

    :param job_id: the backfill. (templated)
    :param errors: error classes to try again; where None, the retry policy decides. (templated)
    :param policy: rules by error class, as under ``retry`` in the job's YAML. They override the
        job's own: ``{"out_of_memory": {"mem": "x2 up to 64G"}, "timeout": "never"}``. (templated)
    :param until_clean: run round after round until nothing retryable is left.
    :param max_rounds: the most rounds that this task starts.
    :param max_items: the most items that its rounds may have together.
    :param max_duration: no round is started after this time, in seconds or as a timedelta.
    """

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

    @property
    def backfill(self) -> str:
        """The job that `BackfillLink` opens."""
        return self.job_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Start the first round."""
        BackfillLink.persist(context, self)
        return self._rounds(context, {"rounds": [], "retried": {}, "began": time.time()})

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """A round has ended: start the next one, or return the result."""
        self.show_kept_script(event)
        self.handle_anomalies(context, event)
        progress_of(event)
        return self._rounds(context, event["state"])

    def _rounds(self, context: Context, state: dict[str, Any]) -> dict[str, Any]:
        allowed = self.max_rounds if self.until_clean else 1
        longest = math.inf if self.max_duration is None else self.max_duration
        while len(state["rounds"]) < allowed and time.time() - state["began"] < longest:
            result = self._retry(context, state)
            if result.round is None:
                left = "not selected" if self.errors else "given up"
                self.log.info("nothing to run again; %s: %s", left, result.given_up or "none")
                break
            state = {**_with_round(state, result), **self.show_script(self.job_id)}
            self.log.info("round %d tries %s again", result.round, result.items)
            if self.deferrable and JobPoller(self, self.job_id).poll(context) is None:
                self.defer_until_done(self.job_id, state)
            self.wait_until_done(context, self.job_id)
        return self._summary(state)

    def _retry(self, context: Context, state: dict[str, Any]) -> api.RetryResult:
        spent = sum(state["retried"].values())
        with as_airflow_failures():
            services = self.services()
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
            services = self.services()
            job_id = check_job_id(self.job_id)
            progress = read_progress(services, job_id)
            cured = dict(cured_by_class(services, job_id))
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
    retried = Counter[str](state["retried"])
    retried.update(result.items)
    return {**state, "rounds": [*state["rounds"], result.round], "retried": dict(retried)}

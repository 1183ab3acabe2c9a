"""Airflow's `ResumableJobMixin` of Airflow 3.3, or a replacement for earlier releases.

Earlier releases have no store in which a try finds the job of the try before, so each try
submits again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk import Context

__all__ = ["ResumableJobMixin"]

if TYPE_CHECKING:
    from airflow.sdk import ResumableJobMixin
else:
    try:
        from airflow.sdk import ResumableJobMixin
    except ImportError:

        class ResumableJobMixin:
            """The same interface, without a store.

            :param durable: accepted, so that a DAG needs no change; nothing is resumed.
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

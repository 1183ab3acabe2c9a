"""Airflow's `ResumableJobMixin`, which came with Airflow 3.3, or what stands in for it before.

Without it there is no store in which a task's tries could find the job of the one before, so
each try submits anew.
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
            """The same face, without a memory.

            :param durable: taken, so that a DAG reads the same; nothing can be resumed.
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

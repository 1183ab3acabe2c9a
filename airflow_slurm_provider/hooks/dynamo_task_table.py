"""The table with the rows of all jobs, for a DAG that reads them."""

from __future__ import annotations

from collections.abc import Iterator

from airflow.providers.amazon.aws.hooks.base_aws import AwsBaseHook

from slurm_worker.backends.clock import AwsClock
from slurm_worker.backends.dynamodb import DynamoRows, dynamo_client
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.job_rows import AuditEvent, JobRow, RoundRow
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import check_job_id
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import TaskRow


class DynamoTaskTableHook(AwsBaseHook):
    """Reads jobs, rounds, tasks and events of the backfill table.

    :param aws_conn_id: connection of type ``aws``.
    :param table_name: the table, as in the ``slurm`` connection.
    """

    def __init__(self, aws_conn_id: str | None = "aws_default", *, table_name: str) -> None:
        super().__init__(aws_conn_id=aws_conn_id, client_type="dynamodb")
        self.table_name = table_name
        self._clock = AwsClock()

    def rows(self) -> DynamoRows:
        """The table's four verbs."""
        endpoint = self.conn_config.get_service_endpoint_url("dynamodb")
        return DynamoRows(dynamo_client(self.get_session(), endpoint), self.table_name, self._clock)

    def job(self, job_id: str) -> JobRow:
        """A job's own row.

        :raises UserError: if there is no such job.
        """
        return self._jobs(job_id).get()

    def rounds(self, job_id: str) -> list[RoundRow]:
        """A job's rounds, oldest first."""
        return self._jobs(job_id).rounds()

    def events(self, job_id: str) -> Iterator[AuditEvent]:
        """A job's audit log, oldest first."""
        return self._jobs(job_id).events()

    def tasks(self, job_id: str) -> Iterator[TaskRow]:
        """A job's task rows, shard by shard; one Query per MB."""
        job = self.job(job_id)
        table = TaskTable(self.rows(), job.job, job.shards, LeaseConfig(), self._clock)
        for shard in range(job.shards):
            yield from table.all_rows(shard)

    def _jobs(self, job_id: str) -> JobTable:
        return JobTable(self.rows(), check_job_id(job_id), self._clock)

"""Backfill every flight out of New York in 2013: submit, wait, retry by class, aggregate."""

from pathlib import Path

from airflow.sdk import DAG

from airflow_slurm_provider.operators.parquet_aggregate import ParquetAggregateOperator
from airflow_slurm_provider.operators.retry_by_error_class import RetryByErrorClassOperator
from airflow_slurm_provider.operators.slurm_submit import SlurmSubmitOperator
from airflow_slurm_provider.sensors.slurm_array import SlurmArraySensor

CONNECTIONS = {"slurm_conn_id": "slurm", "aws_conn_id": "aws"}

with DAG("backfill_flights", schedule=None, catchup=False, doc_md=__doc__, tags=["slurm"]):
    submit = SlurmSubmitOperator(
        task_id="submit",
        config=str(Path(__file__).with_name("config.yaml")),
        job_id="flights-{{ dag_run.run_after.strftime('%Y%m%dt%H%M%S') }}",
        **CONNECTIONS,
    )
    wait = SlurmArraySensor(task_id="wait", job_id=submit.output, poll_interval=2, **CONNECTIONS)
    retry = RetryByErrorClassOperator(
        task_id="retry", job_id=submit.output, poll_interval=2, **CONNECTIONS
    )
    aggregate = ParquetAggregateOperator(task_id="aggregate", job_id=submit.output, **CONNECTIONS)
    submit >> wait >> retry >> aggregate

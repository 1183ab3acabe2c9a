"""Waits for a job around which daemons, workers and requests fail."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG, Param

from airflow_slurm_provider.sensors.slurm_array import SlurmArraySensor

with DAG(
    "waits_amid_chaos",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    params={"job_id": Param("", type="string")},
):
    SlurmArraySensor(
        task_id="wait",
        job_id="{{ params.job_id }}",
        poll_interval=2.0,
        max_resubmissions=20,
        # Its process dies with the scheduler.
        retries=8,
        retry_delay=timedelta(seconds=1),
        slurm_conn_id="slurm",
        aws_conn_id="aws",
    )

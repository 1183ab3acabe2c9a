"""As many sensors as jobs are given, all of which wait in the triggerer."""

from __future__ import annotations

from airflow.sdk import DAG, Param, task

from airflow_slurm_provider.sensors.slurm_array import SlurmArraySensor

with DAG(
    "waits_for_many_jobs",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    params={"job_ids": Param([], type="array")},
    max_active_tasks=1000,
):

    @task
    def jobs(params: dict) -> list[str]:
        return params["job_ids"]

    SlurmArraySensor.partial(
        task_id="wait", slurm_conn_id="slurm", aws_conn_id="aws", poll_interval=10.0
    ).expand(job_id=jobs())

"""A DAG that tries the failed items of a job again."""

from airflow.sdk import DAG, Param

from airflow_slurm_provider.operators.retry_by_error_class import RetryByErrorClassOperator

with DAG(
    "retries_a_job", schedule=None, catchup=False, params={"job_id": Param("", type="string")}
):
    RetryByErrorClassOperator(
        task_id="retry",
        job_id="{{ params.job_id }}",
        policy={"network": {"rounds": 3, "backoff": 0}},
        poll_interval=2,
        slurm_conn_id="slurm",
        aws_conn_id="aws",
    )

"""A Python function and a list become a backfill: the shortest possible DAG."""

from airflow.sdk import DAG, task

with DAG("slurm_map_squares", schedule=None, catchup=False, doc_md=__doc__, tags=["slurm"]):

    @task
    def numbers() -> list[int]:
        return list(range(1, 1001))

    @task.slurm_map(
        job_id="squares-{{ dag_run.run_after.strftime('%Y%m%dt%H%M%S') }}",
        workers=2,
        bundle=100,
        poll_interval=2,
        slurm_conn_id="slurm",
        aws_conn_id="aws",
    )
    def square(number):
        return {"number": number, "square": number * number}

    @task
    def total(published: dict) -> int:
        return published["rows"]

    total(square(numbers()))

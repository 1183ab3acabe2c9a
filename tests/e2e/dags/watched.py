"""Jobs to watch: one that is submitted and waited for, one whose failures are tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.sdk import DAG, BaseNotifier, Param

from airflow_slurm_provider.operators.parquet_aggregate import ParquetAggregateOperator
from airflow_slurm_provider.operators.retry_by_error_class import RetryByErrorClassOperator
from airflow_slurm_provider.operators.slurm_submit import SlurmSubmitOperator
from airflow_slurm_provider.sensors.slurm_array import SlurmArraySensor

CONFIG = {
    "handler": {
        "entry": "handler:handle",
        "code": str(Path(__file__).with_name("watched")),
        "params": {"cure": "{{ params.cure }}"},
    },
    "bundle": 10,
    "workers": 2,
    "worker": {"tries": 1},
    "slurm": {"mem": "300M", "time": "00:10:00"},
    "retry": {"network": {"backoff": 0}},
    # It takes seconds, and is to be judged within them.
    "anomalies": {"window": "10s"},
}
CONNECTIONS = {"slurm_conn_id": "slurm", "aws_conn_id": "aws", "poll_interval": 1.0}
PARAMS = {
    "job_id": Param("", type="string"),
    "items": Param([], type="array"),
    "cure": Param("", type="string"),
    "told": Param("", type="string"),
}


class FileNotifier(BaseNotifier):
    """Appends a line to a file."""

    template_fields = ("path", "line")

    def __init__(self, path: str, line: str) -> None:
        super().__init__()
        self.path = path
        self.line = line

    def notify(self, context: Any) -> None:
        with Path(self.path).open("a") as file:
            file.write(f"{self.line}\n")


with DAG(
    "watched_backfill",
    schedule=None,
    catchup=False,
    render_template_as_native_obj=True,
    params=PARAMS,
):
    submit = SlurmSubmitOperator(
        task_id="submit",
        config=CONFIG,
        job_id="{{ params.job_id }}",
        items="{{ params['items'] }}",
        **CONNECTIONS,
    )
    wait = SlurmArraySensor(
        task_id="wait",
        job_id=submit.output,
        on_anomaly=[FileNotifier("{{ params.told }}", "{{ alert.kind }}: {{ alert.message }}")],
        **CONNECTIONS,
    )
    submit >> wait

with DAG("finishes_a_backfill", schedule=None, catchup=False, params=PARAMS):
    retry = RetryByErrorClassOperator(
        task_id="retry", job_id="{{ params.job_id }}", errors=["network"], **CONNECTIONS
    )
    publish = ParquetAggregateOperator(
        task_id="aggregate", job_id="{{ params.job_id }}", where="local", **CONNECTIONS
    )
    retry >> publish

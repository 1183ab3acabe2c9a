"""Million-item backfills on a Slurm cluster, driven by Apache Airflow.

Importing this package costs nothing: Airflow asks each provider for `get_provider_info`
at every start.
"""

from __future__ import annotations

from typing import Any

# The two distributions are released together, under the worker's version.
from slurm_worker import __version__

__all__ = ["__version__", "get_provider_info"]

_INTEGRATION = "Slurm backfills"
_OPTIONAL_TEXT = {"type": ["string", "null"]}
_CONNECTION_FIELDS: dict[str, tuple[str, str]] = {
    "table": ("DynamoDB table", "Table with the rows of all jobs; string keys pk and sk."),
    "prefix": ("S3 prefix", "s3://bucket/prefix for the objects of all jobs."),
    "transport": ("Transport", "ssh (default), local (this host is a login node) or embedded."),
    "remote_dir": ("Remote folder", "Folder that login and compute nodes share."),
    "python": ("Python on the nodes", "Python 3.10 or later on the nodes. Default: python3."),
    "worker_command": ("Worker command", "Replaces the shipped worker: a venv, a container."),
    "key_file": ("Private key file", "If empty, the agent and the usual keys are tried."),
    "host_key": ("Host key", "The login node's public key: ssh-ed25519 AAAA..."),
    "node_role_arn": ("Role of the nodes", "IAM role for each job. Default: the nodes' profile."),
    "aws_conn_id": ("AWS connection", "AWS connection for the dashboard. Default: aws_default."),
    "embedded_dir": ("Embedded folder", "State of the embedded cluster, for a trial."),
}


def get_provider_info() -> dict[str, Any]:
    """The description of this provider for Airflow."""
    package = __name__
    return {
        "package-name": "airflow-slurm-provider",
        "name": _INTEGRATION,
        "description": "Million-item backfills on a Slurm cluster, with DynamoDB and S3 as the "
        "only shared state.",
        "versions": [__version__],
        "integrations": [
            {
                "integration-name": _INTEGRATION,
                "external-doc-url": "https://slurm.schedmd.com/",
                "tags": ["service"],
            }
        ],
        "operators": _modules(
            "operators", "slurm_submit", "retry_by_error_class", "parquet_aggregate"
        ),
        "sensors": _modules("sensors", "slurm_array"),
        "hooks": _modules("hooks", "slurm", "dynamo_task_table"),
        "triggers": _modules("triggers", "slurm_array", "slurm_batch"),
        "task-decorators": [
            {"name": "slurm_map", "class-name": f"{package}.decorators.slurm_map.slurm_map_task"}
        ],
        "extra-links": [f"{package}.links.BackfillLink", f"{package}.links.JobObjectsLink"],
        "plugins": [
            {"name": "slurm_backfills", "plugin-class": f"{package}.dashboard.plugin.SlurmPlugin"}
        ],
        "config": {
            "slurm_backfills": {
                "description": "The dashboard of Slurm backfills, below /slurm.",
                "options": {
                    "connections": {
                        "description": "Connections of type slurm that the dashboard offers; the "
                        "first one is the default. If empty: the connections in Airflow's "
                        "database. Name connections of a secrets backend or of the environment.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "slurm_default, slurm_gpu",
                        "default": "",
                    }
                },
            }
        },
        "connection-types": [
            {
                "connection-type": "slurm",
                "hook-class-name": f"{package}.hooks.slurm.SlurmHook",
                "hook-name": "Slurm",
                "ui-field-behaviour": {
                    "hidden-fields": ["schema"],
                    "relabeling": {"host": "Login node", "login": "User"},
                    "placeholders": {"host": "login.cluster.example", "port": "22"},
                },
                "conn-fields": {
                    field: {"label": label, "description": help_text, "schema": _OPTIONAL_TEXT}
                    for field, (label, help_text) in _CONNECTION_FIELDS.items()
                },
            }
        ],
    }


def _modules(folder: str, *names: str) -> list[dict[str, Any]]:
    modules = [f"{__name__}.{folder}.{name}" for name in names]
    return [{"integration-name": _INTEGRATION, "python-modules": modules}]

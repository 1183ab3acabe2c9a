"""How everybody finds the stack: the shell's environment, Airflow's connections, the site file.

``.stack/env`` is for ``source``, the same variables are the environment of Airflow's
processes; ``.stack/slurmctl.yaml`` is the site file of the command line.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shlex
from pathlib import Path

import yaml

from tests.stack import login, slurm
from tests.stack.settings import (
    ACCESS_KEY,
    BUCKET,
    KEY_PREFIX,
    LOOPBACK,
    REGION,
    REMOTE_DIR,
    ROOT,
    SECRET_KEY,
    TABLE,
    Mode,
    Settings,
)

PREFIX = f"s3://{BUCKET}/{KEY_PREFIX}"
#: A user of Airflow for each role, named like it; all have the stack's password.
ROLES = ("admin", "op", "user", "viewer")


def write_site(settings: Settings) -> dict[str, str]:
    """Write both files; the stack's variables."""
    variables = _variables(settings)
    _write_private(
        settings.state / "env",
        "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        # For shells only, which then find slurmctl.
        + f'export PATH={shlex.quote(str(ROOT / ".venv" / "bin"))}:"$PATH"\n',
    )
    document = {
        "storage": {"table": TABLE, "prefix": PREFIX},
        "aws": {
            "region": REGION,
            "s3_endpoint_url": settings.s3_url,
            "dynamodb_endpoint_url": settings.dynamodb_url,
        },
        "cluster": _cluster(settings),
    }
    (settings.state / "slurmctl.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return variables


def _cluster(settings: Settings) -> dict[str, object]:
    if settings.mode is Mode.EMBEDDED:
        return {"transport": "embedded", "embedded_dir": str(settings.state / "cluster")}
    return {
        "transport": "ssh",
        "host": LOOPBACK,
        "port": settings.ports["sshd"],
        "user": settings.user,
        "key_file": str(login.user_key(settings)),
        "known_hosts": str(login.known_hosts(settings)),
        "remote_dir": REMOTE_DIR,
    }


def _variables(settings: Settings) -> dict[str, str]:
    found = {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL_S3": settings.s3_url,
        "AWS_ENDPOINT_URL_DYNAMODB": settings.dynamodb_url,
        "SLURMCTL_CONFIG": str(settings.state / "slurmctl.yaml"),
        "PLANES_API_URL": settings.planes_url,
        **_airflow_variables(settings),
    }
    # Once more by the names that operators look for where they are given none.
    for suffix in ("", "_DEFAULT"):
        found[f"AIRFLOW_CONN_SLURM{suffix}"] = json.dumps(_slurm_connection(settings))
        found[f"AIRFLOW_CONN_AWS{suffix}"] = json.dumps(_aws_connection(settings))
    if settings.mode is Mode.SLURM:
        found["SLURM_CONF"] = str(slurm.slurm_conf(settings))
    return found


def _slurm_connection(settings: Settings) -> dict[str, object]:
    storage = {"table": TABLE, "prefix": PREFIX, "aws_conn_id": "aws"}
    if settings.mode is Mode.EMBEDDED:
        return {"conn_type": "slurm", "extra": {**_cluster(settings), **storage}}
    return {
        "conn_type": "slurm",
        "host": LOOPBACK,
        "port": settings.ports["sshd"],
        "login": settings.user,
        "extra": {
            "transport": "ssh",
            "key_file": str(login.user_key(settings)),
            "host_key": login.host_key(settings),
            "remote_dir": REMOTE_DIR,
            **storage,
        },
    }


def _aws_connection(settings: Settings) -> dict[str, object]:
    return {
        "conn_type": "aws",
        "login": ACCESS_KEY,
        "password": SECRET_KEY,
        "extra": {
            "region_name": REGION,
            "service_config": {
                "s3": {"endpoint_url": settings.s3_url},
                "dynamodb": {"endpoint_url": settings.dynamodb_url},
            },
        },
    }


def _airflow_variables(settings: Settings) -> dict[str, str]:
    home = settings.folder("airflow")
    made = _airflow_secrets(home)
    passwords = home / "passwords.json"
    _write_private(passwords, json.dumps(dict.fromkeys(ROLES, made["password"])))
    options = {
        "CORE": {
            "LOAD_EXAMPLES": "False",
            "EXECUTOR": "LocalExecutor",
            "PARALLELISM": "4",
            "TEST_CONNECTION": "Enabled",
            "FERNET_KEY": made["fernet"],
            "EXECUTION_API_SERVER_URL": f"{settings.airflow_url}/execution/",
            "SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{role}:{role}" for role in ROLES),
            "SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        },
        "DATABASE": {"SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db"},
        "API": {"SECRET_KEY": made["api"], "BASE_URL": settings.airflow_url},
        "API_AUTH": {"JWT_SECRET": made["jwt"]},
        "SCHEDULER": {
            "SCHEDULER_IDLE_SLEEP_TIME": "0.25",
            "SCHEDULER_HEARTBEAT_SEC": "2",
            # Tasks of a killed scheduler are resumed after a minute, not after five.
            "ORPHANED_TASKS_CHECK_INTERVAL": "10",
            "TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
            "TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
        },
        "TRIGGERER": {"JOB_HEARTBEAT_SEC": "1"},
        "DAG_PROCESSOR": {
            "REFRESH_INTERVAL": "5",
            "BUNDLE_REFRESH_CHECK_INTERVAL": "2",
            "MIN_FILE_PROCESS_INTERVAL": "20",
            "DAG_BUNDLE_CONFIG_LIST": json.dumps(
                [_bundle("examples", "example_dags"), _bundle("tests", "tests/e2e/dags")]
            ),
        },
        "METRICS": {
            "STATSD_ON": "True",
            "STATSD_HOST": LOOPBACK,
            "STATSD_PORT": str(settings.ports["statsd"]),
            "STATSD_INFLUXDB_ENABLED": "True",
        },
        "SLURM_BACKFILLS": {"CONNECTIONS": "slurm"},
        "USAGE_DATA_COLLECTION": {"ENABLED": "False"},
    }
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW_API_URL": settings.airflow_url,
        "AIRFLOW_API_USER": "admin",
        "AIRFLOW_API_PASSWORD": made["password"],
        **{
            f"AIRFLOW__{section}__{name}": value
            for section, values in options.items()
            for name, value in values.items()
        },
    }


def _bundle(name: str, folder: str) -> dict[str, object]:
    return {
        "name": name,
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": str(ROOT / folder)},
    }


def _airflow_secrets(home: Path) -> dict[str, str]:
    path = home / "secrets.json"
    if not path.exists():
        made = {
            "fernet": base64.urlsafe_b64encode(os.urandom(32)).decode(),
            **{name: secrets.token_urlsafe(64) for name in ("api", "jwt", "password")},
        }
        _write_private(path, json.dumps(made))
    found: dict[str, str] = json.loads(path.read_text())
    return found


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text)

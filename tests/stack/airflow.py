"""Real Airflow: API server, scheduler, DAG processor and triggerer, on SQLite.

The four are separate processes, as in production, so that deferral and restarts are real.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from importlib.metadata import version

from tests.stack.process import Service, ensure, is_running, run
from tests.stack.settings import LOOPBACK, ROOT, Settings

_AIRFLOW = str(ROOT / ".venv" / "bin" / "airflow")


def start(settings: Settings, variables: Mapping[str, str]) -> list[str]:
    """Have Airflow running; what was started. `variables` are the stack's."""
    environment = {**os.environ, **variables}
    _migrate(settings, environment)
    services = [
        _api_server(settings, environment),
        _component(settings, "scheduler", environment, "--skip-serve-logs"),
        _component(settings, "dag-processor", environment),
        _component(settings, "triggerer", environment, "--skip-serve-logs"),
    ]
    with ThreadPoolExecutor(len(services)) as pool:
        fresh = pool.map(lambda service: ensure(settings, service), services)
        return [service.name for service, new in zip(services, fresh, strict=True) if new]


def _migrate(settings: Settings, environment: Mapping[str, str]) -> None:
    done = settings.state / "airflow" / "migrated"
    wanted = version("apache-airflow")
    if not done.exists() or done.read_text() != wanted:
        run([_AIRFLOW, "db", "migrate"], environment=environment, timeout=180.0)
        done.write_text(wanted)


def _api_server(settings: Settings, environment: Mapping[str, str]) -> Service:
    port = str(settings.ports["airflow-api"])
    return Service(
        name="airflow-api",
        argv=(_AIRFLOW, "api-server", "--host", LOOPBACK, "--port", port, "--workers", "1"),
        environment=environment,
        ready=lambda: bool(_health(settings)),
        port="airflow-api",
        deadline=180.0,
    )


def _component(
    settings: Settings, name: str, environment: Mapping[str, str], *options: str
) -> Service:
    service = f"airflow-{name}"
    key = name.replace("-", "_")
    # A heartbeat of the process before this one must not count.
    since = time.time() - (30.0 if is_running(settings, service) else 0.0)

    def heart_beats() -> bool:
        found = _health(settings).get(key, {})
        beat = found.get(f"latest_{key}_heartbeat") or ""
        return found.get("status") == "healthy" and _seconds(beat) > since

    return Service(
        name=service,
        argv=(_AIRFLOW, name, *options),
        environment=environment,
        ready=heart_beats,
        deadline=180.0,
        patience=12.0,  # it waits for tasks at work; a stack that goes down does not
    )


def _health(settings: Settings) -> dict[str, dict[str, str | None]]:
    """What the API server says of every component; nothing while it is not up."""
    url = f"{settings.airflow_url}/api/v2/monitor/health"
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            found: dict[str, dict[str, str | None]] = json.loads(reply.read())
    except OSError:
        return {}
    return found


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else 0.0

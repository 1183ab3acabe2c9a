"""The dashboard in Airflow: mounted by the API server below `/slurm`, with entries in its UI.

Every Airflow process loads its plugins, workers included; only the API server asks for
`fastapi_apps`, so the application is made there and nowhere else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, cast

from airflow.providers.common.compat.sdk import AirflowPlugin

from airflow_slurm_provider.dashboard_urls import PREFIX, dashboard_root

log = logging.getLogger(__name__)

#: Addresses that Airflow's UI completes with what it shows.
_RUN = "airflow/run?dag_id={DAG_ID}&run_id={RUN_ID}"
_TASK = "airflow/task?dag_id={DAG_ID}&run_id={RUN_ID}&task_id={TASK_ID}&map_index={MAP_INDEX}"


class _WhenAsked:
    """A class attribute whose value is made when it is first read."""

    def __init__(self, make: Callable[[], list[dict[str, Any]]]) -> None:
        self._make = make

    def __get__(self, instance: object, owner: type | None = None) -> list[dict[str, Any]]:
        return self._make()


@cache
def mounted_apps() -> list[dict[str, Any]]:
    """The dashboard for Airflow's API server; none where it can't be made."""
    try:
        # Airflow's server and its database, which no other process may or need load.
        from airflow_slurm_provider.dashboard.plugin.mounted import mounted_app

        return [{"app": mounted_app(), "url_prefix": PREFIX, "name": "Slurm backfills"}]
    except Exception:
        # Whatever is missing here must not keep Airflow's API server from starting.
        log.exception("the dashboard of Slurm backfills can't be mounted")
        return []


@cache
def _views() -> list[dict[str, Any]]:
    root = dashboard_root()
    icons = {"icon": f"{root}/static/icon.svg", "icon_dark_mode": f"{root}/static/icon-dark.svg"}
    entries = [
        # Airflow's nav has room for one word.
        ("Slurm", "", "slurm", "nav"),
        ("Slurm backfill", _RUN, "slurm-run", "dag_run"),
        ("Slurm backfill", _TASK, "slurm-task", "task_instance"),
    ]
    return [
        {
            "name": name,
            "href": f"{root}/{path}",
            "url_route": route,
            "destination": place,
            "nav_top_level": place == "nav",
            **icons,
        }
        for name, path, route, place in entries
    ]


class SlurmPlugin(AirflowPlugin):
    """Mounts the dashboard, and leads to it from the nav and from runs and tasks."""

    name = "slurm_backfills"
    fastapi_apps: list[Any] = cast("list[Any]", _WhenAsked(mounted_apps))
    external_views: list[Any] = cast("list[Any]", _WhenAsked(_views))

"""The application that Airflow mounts: the dashboard, its sites, and links from runs and tasks.

A DAG run's and a task instance's page in Airflow's UI have a tab that asks here which job
is theirs: the address that `BackfillLink` left among the task's XComs. One query each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from airflow.models import Connection
from airflow.models.xcom import XComModel
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, conf
from airflow.utils.session import create_session
from fastapi import APIRouter, FastAPI, HTTPException, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import select

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.ttl_cache import TTLCache
from airflow_slurm_provider.dashboard import pages
from airflow_slurm_provider.dashboard.app import create_app
from airflow_slurm_provider.dashboard.plugin.guard import AirflowGuard, airflow_user, may_read_xcoms
from airflow_slurm_provider.dashboard_urls import Destination
from airflow_slurm_provider.hooks.slurm import SlurmHook
from airflow_slurm_provider.links import BackfillLink
from slurm_worker.errors import UserError

router = APIRouter(include_in_schema=False)
Name = Annotated[str, Query(max_length=250)]
_REOPEN_S = 300.0
_NONE_YET = (
    "no backfill is known here: it has not been submitted yet, or the task uses no operator of "
    "airflow-slurm-provider"
)


class AirflowSites:
    """The sites of a dashboard in Airflow: its connections of type `slurm`.

    Those that Airflow's database holds can be listed, those of a secrets backend or of the
    environment can't: ``[slurm_backfills] connections`` names them, and links of tasks lead to
    any. Services are kept for five minutes, so that an edited connection counts soon and its
    secrets backend is not queried at each request. Requests: none except reading a connection.
    """

    def __init__(self) -> None:
        self._opened: TTLCache[Services] = TTLCache()

    def names(self) -> Sequence[str]:
        """The configured connections, else those of the database; the default first."""
        configured = conf.getlist("slurm_backfills", "connections", fallback=[])
        return list(configured or stored_connections()) or [SlurmHook.default_conn_name]

    def services(self, conn: str) -> Services:
        """The services of a connection of type `slurm`."""
        name = conn or self.names()[0]
        return self._opened.get(name, _REOPEN_S, lambda: _open(name))


def mounted_app() -> FastAPI:
    """The dashboard behind Airflow's own permissions."""
    app = create_app(AirflowSites(), AirflowGuard())
    app.include_router(router)
    return app


@router.get("/airflow/run")
async def of_run(request: Request, dag_id: Name, run_id: Name) -> Response:
    """The job of a DAG run: the latest that one of its tasks has recorded."""
    return await _lead(request, dag_id, run_id, None, None)


@router.get("/airflow/task")
async def of_task(
    request: Request,
    dag_id: Name,
    run_id: Name,
    task_id: Name,
    # Airflow's UI keeps its placeholder where a task is not mapped.
    map_index: Annotated[str, Query(max_length=20)] = "-1",
) -> Response:
    """The job of a task instance."""
    index = int(map_index) if map_index.isdecimal() else -1
    return await _lead(request, dag_id, run_id, task_id, index)


async def _lead(
    request: Request, dag_id: str, run_id: str, task_id: str | None, map_index: int | None
) -> Response:
    user = await airflow_user(request)
    if not await run_in_threadpool(may_read_xcoms, user, dag_id):
        raise HTTPException(403, f"your role in Airflow may not read XComs of {dag_id}")
    found = await run_in_threadpool(destinations, dag_id, run_id, task_id, map_index)
    if not found:
        return pages.error_page(request, 404, _NONE_YET)
    # Relative to this mount, whatever host the XCom names.
    return RedirectResponse(f"{request.scope['root_path']}/{found[-1].path()}", 303)


def destinations(
    dag_id: str, run_id: str, task_id: str | None, map_index: int | None
) -> Sequence[Destination]:
    """Jobs that tasks of the run have recorded, oldest first."""
    key = BackfillLink().xcom_key
    query = XComModel.get_many(
        run_id=run_id, key=key, dag_ids=dag_id, task_ids=task_id, map_indexes=map_index
    )
    columns = query.with_only_columns(XComModel.value, XComModel.timestamp)
    with create_session() as session:
        rows = sorted(session.execute(columns), key=lambda row: row.timestamp)
        addresses = [str(XComModel.deserialize_value(row)) for row in rows]
    return [found for text in addresses if (found := Destination.of_address(text)) is not None]


def stored_connections() -> list[str]:
    """The connections of type `slurm` in Airflow's database."""
    with create_session() as session:
        found = session.scalars(
            select(Connection.conn_id).where(Connection.conn_type == SlurmHook.conn_type)
        )
        # The name that operators use where they are given none comes first.
        return sorted(found, key=lambda name: (name != SlurmHook.default_conn_name, name))


def _open(name: str) -> Services:
    try:
        connection = BaseHook.get_connection(name)
    except AirflowNotFoundException:
        connection = None
    if connection is None or connection.conn_type != SlurmHook.conn_type:
        raise UserError(f"conn: {name!r} is not a connection of type slurm")
    aws = str(connection.extra_dejson.get("aws_conn_id") or "aws_default")
    return SlurmHook(name, aws).services()

"""Who may use the dashboard in Airflow: whom Airflow's own auth manager lets.

| to | Airflow must allow |
| --- | --- |
| read | reading of task instances (of any DAG) |
| act | changing them, as for clearing a task |

The user is found as in Airflow's own API: by a bearer token, or by the UI's cookie (which
Airflow 3.0 doesn't have: there a token must come along).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api import security
from fastapi import HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from airflow_slurm_provider.dashboard.auth import User

if TYPE_CHECKING:
    from airflow.api_fastapi.auth.managers.base_auth_manager import ResourceMethod
    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser


class AirflowGuard:
    """See `airflow_slurm_provider.dashboard.auth.Guard`."""

    async def user(self, request: Request) -> User:
        """The user; 401 without a login, 403 without the right to read task instances."""
        found = await airflow_user(request)
        if not await run_in_threadpool(_may, "GET", found):
            raise HTTPException(403, "your role in Airflow may not read task instances")
        may_act = await run_in_threadpool(_may, "PUT", found)
        refusal = "" if may_act else "your role in Airflow may not change task instances"
        return User(f"airflow user {found.get_name()}", refusal)


async def airflow_user(request: Request) -> BaseUser:
    """Airflow's user.

    Raises:
        HTTPException: 401 or 403, as Airflow's own API does.
    """
    # Its signature differs between releases, of which mypy sees one.
    found: Any = security
    if hasattr(found, "bearer_scheme"):
        user = await found.get_user(request, None, await found.bearer_scheme(request))
    else:  # Airflow 3.0
        user = await found.get_user(await found.oauth2_scheme(request))
    return cast("BaseUser", user)


def may_read_xcoms(user: BaseUser, dag_id: str) -> bool:
    """Whether the user may read what the DAG's tasks have left."""
    return get_auth_manager().is_authorized_dag(
        method="GET", access_entity=DagAccessEntity.XCOM, details=DagDetails(id=dag_id), user=user
    )


def _may(method: ResourceMethod, user: BaseUser) -> bool:
    return get_auth_manager().is_authorized_dag(
        method=method, access_entity=DagAccessEntity.TASK_INSTANCE, user=user
    )

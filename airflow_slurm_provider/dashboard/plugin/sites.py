"""The sites of a dashboard in Airflow: its connections of type `slurm`.

Those that Airflow's database holds can be listed, those of a secrets backend or of the
environment can't: ``[slurm_backfills] connections`` names them, and links of tasks lead to
any. Services are kept for five minutes, so that an edited connection counts soon and its
secrets backend is not queried at each request. Requests: none except reading a connection.
"""

from __future__ import annotations

from collections.abc import Sequence

from airflow.models import Connection
from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, conf
from airflow.utils.session import create_session
from sqlalchemy import select

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.ttl_cache import TTLCache
from airflow_slurm_provider.hooks.slurm import SlurmHook
from slurm_worker.errors import UserError

_REOPEN_S = 300.0
_DEFAULT_AWS = "aws_default"


class AirflowSites:
    """See `airflow_slurm_provider.dashboard.sites.SitesSource`."""

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
    aws = str(connection.extra_dejson.get("aws_conn_id") or _DEFAULT_AWS)
    return SlurmHook(name, aws).services()

"""The connection type ``slurm``: a login node, and where the site keeps its jobs.

SSH is the ssh provider's `SSHHook` on the same connection, so keys, agent, password,
bastion and host key are set as for it. One client per connection and process is kept
and shared, also by all deferred tasks of a triggerer.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import paramiko
from airflow.providers.amazon.aws.hooks.base_aws import AwsGenericHook
from airflow.providers.common.compat.sdk import BaseHook
from airflow.providers.ssh.hooks.ssh import SSHHook

from airflow_slurm_provider.coordinator.inputs.database import open_engine
from airflow_slurm_provider.coordinator.services import (
    Services,
    SharedPolling,
    open_services,
    open_transport,
)
from airflow_slurm_provider.coordinator.spec.site import Site, parse_cluster, parse_site
from airflow_slurm_provider.coordinator.ttl_cache import TTLCache
from airflow_slurm_provider.slurm.array_state import ArrayKey, ArrayState
from airflow_slurm_provider.slurm.client import SlurmClient
from airflow_slurm_provider.slurm.poller import ArrayPoller
from slurm_worker.errors import SlurmWorkerError, UserError

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

#: Services are opened again after this time in seconds, so that an edited connection counts.
_REOPEN_S = 300.0
_AWS_EXTRAS = ("node_role_arn", "node_read", "checksums")
_SITE_EXTRAS = ("transport", "remote_dir", "python", "worker_command", "embedded_dir")


class SlurmHook(BaseHook):
    """A Slurm cluster and the table and bucket of its backfills.

    :param slurm_conn_id: connection of type ``slurm``.
    :param aws_conn_id: connection of type ``aws``, for the table and the bucket.
    """

    conn_name_attr = "slurm_conn_id"
    default_conn_name = "slurm_default"
    conn_type = "slurm"
    hook_name = "Slurm"

    #: Clients by connection, each with its poller of arrays; waiting tasks share them.
    _clients: ClassVar[TTLCache[tuple[SlurmClient, ArrayPoller]]] = TTLCache(math.inf, most=64)
    #: Snapshots of jobs, by connection to AWS and site: another table has other jobs.
    _progress: ClassVar[TTLCache[TTLCache[Any]]] = TTLCache(math.inf, most=64)
    #: Services by connections: hundreds of tasks may wait.
    _opened: ClassVar[TTLCache[Services]] = TTLCache()

    def __init__(
        self, slurm_conn_id: str = default_conn_name, aws_conn_id: str | None = "aws_default"
    ) -> None:
        super().__init__()
        self.slurm_conn_id = slurm_conn_id
        self.aws_conn_id = aws_conn_id

    def get_conn(self) -> SlurmClient:
        """The cluster's client, shared by this process."""
        return self._client()[0]

    def _client(self) -> tuple[SlurmClient, ArrayPoller]:
        cluster = parse_cluster(self._cluster(), f"connection {self.slurm_conn_id!r}")

        def connect() -> tuple[SlurmClient, ArrayPoller]:
            transport = open_transport(cluster, connect=self._connect)
            client = SlurmClient(transport, cluster.remote_dir)
            return client, ArrayPoller(client.arrays)

        return self._clients.get((self.slurm_conn_id, repr(cluster)), math.inf, connect)

    def site(self) -> Site:
        """The site that the two connections describe.

        :raises UserError: naming the connection's field, its value and the fix.
        """
        extra = self.get_connection(self.slurm_conn_id).extra_dejson
        storage = {name: extra[name] for name in ("table", "prefix") if extra.get(name)}
        alerts = {"alerts": extra["alerts"]} if extra.get("alerts") else {}
        raw = {"storage": storage, "aws": self._aws_site(), "cluster": self._cluster(), **alerts}
        return parse_site(raw, f"connection {self.slurm_conn_id!r}")

    def _cluster(self) -> dict[str, Any]:
        connection = self.get_connection(self.slurm_conn_id)
        cluster = {name: connection.extra_dejson.get(name) for name in _SITE_EXTRAS}
        cluster["host"], cluster["user"] = connection.host, connection.login
        cluster["port"] = connection.port or None
        return {name: value for name, value in cluster.items() if value not in (None, "")}

    def services(self, *, poll_s: float | None = None) -> Services:
        """What the coordinator's functions work with.

        :param poll_s: for a wait: seconds between two status queries, which all waits in this
            process share.
        """
        key = (self.slurm_conn_id, self.aws_conn_id)
        opened = self._opened.get(key, _REOPEN_S, self._open)
        return replace(opened, shared=None) if poll_s is None else replace(opened, poll_s=poll_s)

    @classmethod
    def reopen(cls) -> None:
        """Open services again when they are next used, as after a connection was edited."""
        cls._opened.clear()

    def _open(self) -> Services:
        aws: AwsGenericHook[Any] = AwsGenericHook(aws_conn_id=self.aws_conn_id)
        site, (client, poller) = self.site(), self._client()
        progress = self._progress.get((self.aws_conn_id, repr(site)), math.inf, TTLCache)
        shared = SharedPolling(poller, progress)
        opened = open_services(site, session=aws.get_session(), slurm=client, shared=shared)
        return replace(opened, engine=_engine)

    def array(self, array: ArrayKey, max_age_s: float) -> ArrayState:
        """An array's state, from a query that all waits in this process share."""
        return self._client()[1].array(array, max_age_s)

    def test_connection(self) -> tuple[bool, str]:
        """For the Test button: login, Slurm and its limits, table and bucket."""
        try:
            client = self.get_conn()
            version, most = client.version(), client.max_array_size()
            services = self._open()
            services.objects.verify()
            services.rows.get("CONNECTION", "TEST")
        except SlurmWorkerError as error:
            return False, str(error)
        storage = services.site.storage
        reached = f"table {storage.table} and {storage.prefix} can be reached"
        return True, f"{version}, arrays of up to {most:,}; {reached}"

    def _connect(self) -> paramiko.SSHClient:
        extra = self.get_connection(self.slurm_conn_id).extra_dejson
        hook = SSHHook(ssh_conn_id=self.slurm_conn_id)
        # By default the ssh provider accepts any host; we check the host key.
        if "no_host_key_check" not in extra:
            hook.no_host_key_check = False
        return hook.get_conn()

    def _aws_site(self) -> dict[str, Any]:
        hook: AwsGenericHook[Any] = AwsGenericHook(aws_conn_id=self.aws_conn_id)
        url = hook.conn_config.get_service_endpoint_url
        extra = self.get_connection(self.slurm_conn_id).extra_dejson
        return {
            "region": hook.region_name,
            **{f"{name}_endpoint_url": url(name) for name in ("s3", "dynamodb", "sns")},
            "sts_endpoint_url": url("sts", sts_connection_assume=True),
            **{name: extra[name] for name in _AWS_EXTRAS if extra.get(name)},
        }


def _engine(database: str) -> Engine:
    """The engine of a database: by the id of its connection, or by its URL."""
    if "://" in database or database.startswith("$"):
        return open_engine(database)
    hook = BaseHook.get_hook(database)
    if not hasattr(hook, "get_sqlalchemy_engine"):
        raise UserError(f"input.database: the connection {database!r} is not of a SQL database")
    engine: Engine = hook.get_sqlalchemy_engine()
    return engine

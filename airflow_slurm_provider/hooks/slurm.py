"""The connection type ``slurm``: a login node, and where the site keeps its jobs.

SSH is the ssh provider's `SSHHook` on the same connection, so keys, agent, password,
bastion and host key are set as for it. One client per connection and process is kept
and shared, also by all deferred tasks of a triggerer.
"""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import paramiko
from airflow.providers.amazon.aws.hooks.base_aws import AwsGenericHook
from airflow.providers.ssh.hooks.ssh import SSHHook
from airflow.sdk import BaseHook

from airflow_slurm_provider.coordinator.services import Services, open_services, open_transport
from airflow_slurm_provider.coordinator.site import Site, parse_site
from airflow_slurm_provider.slurm.client import SlurmClient
from slurm_worker.errors import SlurmWorkerError

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

    #: Clients that live as long as the process, by connection.
    _clients: ClassVar[dict[str, SlurmClient]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(
        self, slurm_conn_id: str = default_conn_name, aws_conn_id: str | None = "aws_default"
    ) -> None:
        super().__init__()
        self.slurm_conn_id = slurm_conn_id
        self.aws_conn_id = aws_conn_id

    def get_conn(self) -> SlurmClient:
        """The cluster's client, shared by this process."""
        site = self.site()
        key = f"{self.slurm_conn_id} {site.cluster!r}"
        with self._lock:
            if key not in self._clients:
                transport = open_transport(site.cluster, connect=self._connect)
                self._clients[key] = SlurmClient(transport, site.cluster.remote_dir)
            return self._clients[key]

    def site(self) -> Site:
        """The site that the two connections describe.

        :raises UserError: naming the connection's field, its value and the mend.
        """
        connection = self.get_connection(self.slurm_conn_id)
        extra = connection.extra_dejson
        cluster: dict[str, Any] = {
            name: extra[name] for name in _SITE_EXTRAS if extra.get(name) not in (None, "")
        }
        if connection.host:
            cluster["host"] = connection.host
        if connection.port:
            cluster["port"] = connection.port
        if connection.login:
            cluster["user"] = connection.login
        storage = {name: extra[name] for name in ("table", "prefix") if extra.get(name)}
        raw = {"storage": storage, "aws": self._aws_site(), "cluster": cluster}
        return parse_site(raw, f"connection {self.slurm_conn_id!r}")

    def services(self) -> Services:
        """What the coordinator's functions work with."""
        aws: AwsGenericHook[Any] = AwsGenericHook(aws_conn_id=self.aws_conn_id)
        session = aws.get_session()
        return open_services(self.site(), session=session, slurm=self.get_conn())

    def test_connection(self) -> tuple[bool, str]:
        """For the Test button: login, Slurm, table and bucket."""
        try:
            version = self.get_conn().version()
            services = self.services()
            services.objects.verify()
            services.rows.get("CONNECTION", "TEST")
        except SlurmWorkerError as error:
            return False, str(error)
        storage = services.site.storage
        return True, f"{version}; table {storage.table} and {storage.prefix} can be reached"

    def _connect(self) -> paramiko.SSHClient:
        extra = self.get_connection(self.slurm_conn_id).extra_dejson
        hook = SSHHook(ssh_conn_id=self.slurm_conn_id)
        # The ssh provider accepts any host unless told otherwise; a cluster is worth a check.
        if "no_host_key_check" not in extra:
            hook.no_host_key_check = False
        return hook.get_conn()

    def _aws_site(self) -> dict[str, Any]:
        hook: AwsGenericHook[Any] = AwsGenericHook(aws_conn_id=self.aws_conn_id)
        config = hook.conn_config
        return {
            "region": hook.region_name,
            "s3_endpoint_url": config.get_service_endpoint_url("s3"),
            "dynamodb_endpoint_url": config.get_service_endpoint_url("dynamodb"),
        }

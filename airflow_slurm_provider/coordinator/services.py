"""What a coordinator works with: the table, the bucket, the cluster, a clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config as BotoConfig

from airflow_slurm_provider.coordinator.spec.site import ClusterSite, Site
from airflow_slurm_provider.coordinator.ttl_cache import TTLCache
from airflow_slurm_provider.slurm.array_state import ArrayKey, ArrayState, merge_arrays
from airflow_slurm_provider.slurm.client import SlurmClient
from airflow_slurm_provider.slurm.embedded.transport import EmbeddedTransport
from airflow_slurm_provider.slurm.poller import ArrayPoller
from airflow_slurm_provider.slurm.transport import LocalTransport, OnFirstUse, Transport
from slurm_worker.backends.clock import AwsClock
from slurm_worker.backends.dynamodb import DynamoRows, dynamo_client
from slurm_worker.backends.errors import settings_explained
from slurm_worker.backends.s3 import S3Objects, s3_client
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.job_rows import JobRow
from slurm_worker.protocol.job_store import JobStore, probe_conditional_put
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.paths import JobPaths, conditional_put_key
from slurm_worker.protocol.ports import Clock, ObjectStore, Rows
from slurm_worker.protocol.task_table import TaskTable

if TYPE_CHECKING:
    import paramiko

    from airflow_slurm_provider.coordinator.inputs.database import OpenEngine

#: Gets a line per step.
Log = Callable[[str], None]

#: A process that waits for a job must not be held up by an alert for more than some seconds.
_HASTY = BotoConfig(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 2})


@dataclass(frozen=True, slots=True)
class SharedPolling:
    """What all waits for jobs share in one process."""

    poller: ArrayPoller  #: queries the cluster's arrays
    progress: TTLCache[Any]  #: the last progress of each job, of one table and store


@dataclass(frozen=True, slots=True)
class Services:
    """The edges, opened. Close it when done, unless the cluster's client is shared."""

    site: Site
    rows: Rows
    objects: ObjectStore
    slurm: SlurmClient
    clock: Clock
    bucket: Callable[[str], ObjectStore]
    sts: Callable[[], Any]
    shared: SharedPolling | None = None  #: None if each wait queries alone
    poll_s: float = 0.0  #: seconds between two queries of this wait
    #: By job, what the readers of its rows remember of the last query
    readers: TTLCache[Any] = field(default_factory=TTLCache)
    sns: Callable[[str], Any] | None = None  #: makes a client for alerts in a region
    credentials: Callable[[], Any] = lambda: None  #: this process's, for AWS; None if it has none
    engine: OpenEngine | None = None  #: opens an input's database; None for one by its URL
    #: By bucket, whether the store heeds ``If-None-Match``; see `conditional_put`
    conditional: dict[str, bool] = field(default_factory=dict)

    def conditional_put(self) -> bool:
        """Whether the store refuses to create an object twice.

        It is tested once: with one request, or two in the first process of a site.
        """
        bucket = self.site.bucket
        if bucket not in self.conditional:
            key = conditional_put_key(self.site.prefix)
            self.conditional[bucket] = probe_conditional_put(self.objects, key)
        return self.conditional[bucket]

    def paths(self, job: JobId) -> JobPaths:
        """The job's S3 keys."""
        return JobPaths(self.site.prefix, job)

    def store(self, job: JobId) -> JobStore:
        """The job's objects."""
        return JobStore(self.objects, self.paths(job))

    def jobs(self, job: JobId) -> JobTable:
        """The job's own rows."""
        return JobTable(self.rows, job, self.clock)

    def tasks(self, job: JobRow) -> TaskTable:
        """The job's task rows, for reading and planning; not for leases."""
        return TaskTable(self.rows, job.job, job.shards, LeaseConfig(), self.clock)

    def arrays(self, arrays: Sequence[ArrayKey]) -> ArrayState:
        """Several arrays as one, for a wait; up to an interval old if the wait shares queries."""
        if self.shared is None:
            return self.slurm.together(arrays)
        poller = self.shared.poller
        return merge_arrays([poller.array(key, self.poll_s) for key in arrays])

    def close(self) -> None:
        """Close the connection to the cluster."""
        self.slurm.close()


def open_services(
    site: Site,
    *,
    session: boto3.Session | None = None,
    slurm: SlurmClient | None = None,
    shared: SharedPolling | None = None,
    poll_s: float = 0.0,
) -> Services:
    """Open the edges of a site, for every face; connections are made when first used.

    By default, `session` is that of `open_session`, and `slurm` a new client with the site's
    transport. For `shared` and `poll_s` see `Services`.
    """
    chosen = session or open_session(site)
    s3 = s3_client(chosen, site.aws.s3_endpoint_url, site.aws.checksums)
    dynamo = dynamo_client(chosen, site.aws.dynamodb_endpoint_url)
    clock = AwsClock()
    return Services(
        site=site,
        rows=DynamoRows(dynamo, site.storage.table, clock),
        objects=S3Objects(s3, site.bucket),
        slurm=slurm or SlurmClient(open_transport(site.cluster), site.cluster.remote_dir),
        clock=clock,
        bucket=lambda name: S3Objects(s3, name),
        sts=lambda: chosen.client("sts", endpoint_url=site.aws.sts_endpoint_url),
        sns=lambda region: chosen.client(
            "sns", region_name=region, endpoint_url=site.aws.sns_endpoint_url, config=_HASTY
        ),
        shared=shared,
        poll_s=poll_s,
        credentials=chosen.get_credentials,
    )


def open_session(site: Site) -> boto3.Session:
    """A session with the site's profile and region, or else the standard chain's.

    Raises:
        UserError: if the profile does not exist.
    """
    with settings_explained():
        return boto3.Session(profile_name=site.aws.profile, region_name=site.aws.region)


def open_transport(
    cluster: ClusterSite, connect: Callable[[], paramiko.SSHClient] | None = None
) -> Transport:
    """The site's transport to its cluster; `connect` replaces the site's SSH settings."""
    if cluster.transport == "local":
        return LocalTransport()
    if cluster.transport == "embedded":
        return EmbeddedTransport(cluster.embedded_dir or "~/.airflow-slurm/embedded")

    def over_ssh() -> Transport:
        # Importing paramiko takes a tenth of the time of a command that needs AWS alone.
        from airflow_slurm_provider.slurm.ssh import SshTransport, open_paramiko

        login = (cluster.host, cluster.port, cluster.user, cluster.key_file, cluster.known_hosts)
        return SshTransport(connect or (lambda: open_paramiko(*login)))

    return OnFirstUse(over_ssh)

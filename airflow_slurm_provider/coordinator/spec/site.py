"""The site: the table, bucket, endpoints and cluster that all jobs of a lab share.

``slurmctl`` reads it from a YAML file; the Airflow hooks build it from connections.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from airflow_slurm_provider.coordinator.spec.field_types import Strict
from airflow_slurm_provider.coordinator.spec.validation import read_yaml, validate
from slurm_worker.backends.checksums import Checksums
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import split_s3_uri

_TOPIC = re.compile(r"arn:aws[a-z-]*:sns:([a-z0-9-]+):\d+:[A-Za-z0-9_.-]+")
_WEBHOOK_FIELDS = ("webhook_url", "webhook_url_env", "webhook_url_file")


class StorageSite(Strict):
    """The DynamoDB table, and the S3 address under which all jobs live."""

    table: str
    """The DynamoDB table of all jobs."""
    prefix: str
    """`s3://bucket/prefix` under which all jobs live."""


class AwsSite(Strict):
    """Where AWS is. Credentials come from the standard chain, here and on the nodes.

    With `node_role_arn` nodes get credentials of this role instead. These allow the job's own
    objects and rows, and reading below the S3 addresses of `node_read`.
    """

    region: str | None = None
    """The table's and the bucket's region."""
    profile: str | None = None
    """A profile of the AWS configuration, for the coordinator."""
    s3_endpoint_url: str | None = None
    """The endpoint of S3, if it is not AWS's own."""
    dynamodb_endpoint_url: str | None = None
    """The endpoint of DynamoDB, likewise."""
    sts_endpoint_url: str | None = None
    """The endpoint of STS, likewise."""
    sns_endpoint_url: str | None = None
    """The endpoint of SNS, likewise."""
    checksums: Checksums | None = None
    """`when_required`, for a store that does not support the checksums of the AWS SDK."""
    node_role_arn: str | None = None
    """The role whose credentials workers get, limited to their job."""
    node_read: tuple[str, ...] = ()
    """More S3 addresses that handlers may read with these credentials: objects or folders."""

    def environment(self) -> dict[str, str]:
        """The SDK's own variables, for workers; no secrets."""
        found = {
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL_S3": self.s3_endpoint_url,
            "AWS_ENDPOINT_URL_DYNAMODB": self.dynamodb_endpoint_url,
            "AWS_REQUEST_CHECKSUM_CALCULATION": self.checksums,
            "AWS_RESPONSE_CHECKSUM_VALIDATION": self.checksums,
        }
        return {name: value for name, value in found.items() if value}


class ClusterSite(Strict):
    """How the cluster is reached, and what its nodes have.

    `transport` is ``ssh`` (to a login node), ``local`` (this machine is a login node) or
    ``embedded`` (no cluster: the array runs as processes on this machine).
    """

    transport: Literal["ssh", "local", "embedded"] = "ssh"
    """Where Slurm's commands are run: `ssh`, `local` or `embedded`."""
    host: str = ""
    """The login node."""
    port: int = 22
    """Its SSH port."""
    user: str | None = None
    """The account there; by default this machine's."""
    key_file: str | None = None
    """The private key; by default the agent's keys and the usual files."""
    known_hosts: str | None = None
    """The file of known host keys."""
    remote_dir: str = ".airflow-slurm"
    """A folder there that all nodes see and only the account can write; relative to its home."""
    embedded_dir: str | None = None
    """The folder with the state of the embedded cluster."""
    python: str = "python3"
    """The nodes' Python, 3.10 or newer."""
    worker_command: str | None = None
    """A command on the nodes that starts the worker, instead of the one that is uploaded."""


class AlertsSite(Strict):
    """Where alerts of anomalies go, in addition to the log and the audit log.

    A webhook's address is often a secret. `webhook_url_env` names an environment variable that
    holds it, and `webhook_url_file` a file.
    """

    sns_topic_arn: str | None = None
    """An SNS topic."""
    webhook_url: str | None = None
    """A webhook's https address."""
    webhook_url_env: str | None = None
    """The environment variable that holds it."""
    webhook_url_file: str | None = None
    """The file that holds it."""


class Site(Strict):
    """The site's file."""

    storage: StorageSite
    """The table and the bucket."""
    aws: AwsSite = AwsSite()
    """Where AWS is."""
    cluster: ClusterSite
    """How the cluster is reached."""
    alerts: AlertsSite = AlertsSite()
    """Where alerts of anomalies go."""

    @property
    def bucket(self) -> str:
        """The bucket of `storage.prefix`."""
        return split_s3_uri(self.storage.prefix, "storage.prefix")[0]

    @property
    def prefix(self) -> str:
        """The key prefix of `storage.prefix`."""
        return split_s3_uri(self.storage.prefix, "storage.prefix")[1]


def load_site(path: str | Path) -> Site:
    """Read the site's YAML file; see `read_yaml` and `parse_site`."""
    file = Path(path).expanduser()
    raw = read_yaml(file, "site", "name the site's file with --site or SLURMCTL_CONFIG")
    return parse_site(raw, str(file))


def parse_cluster(raw: object, name: str) -> ClusterSite:
    """Check a cluster's settings; see `parse_site`."""
    cluster = validate(ClusterSite, raw, f"{name}: ")
    _check_cluster(cluster, name)
    return cluster


def parse_site(raw: object, name: str) -> Site:
    """Check a site's settings; `name` is their source, for messages. See `validate`."""
    site = validate(Site, raw, f"{name}: ")
    split_s3_uri(site.storage.prefix, f"{name}: storage.prefix")
    _check_cluster(site.cluster, name)
    alerts = site.alerts
    if alerts.sns_topic_arn and not _TOPIC.fullmatch(alerts.sns_topic_arn):
        raise UserError(
            f"{name}: alerts.sns_topic_arn: {alerts.sns_topic_arn!r} is not an SNS topic; write "
            "arn:aws:sns:<region>:<account>:<name>"
        )
    if len(found := [field for field in _WEBHOOK_FIELDS if getattr(alerts, field)]) > 1:
        raise UserError(f"{name}: alerts: has {' and '.join(found)}; give only one of them")
    if alerts.webhook_url:
        check_webhook(alerts.webhook_url, f"{name}: alerts.webhook_url")
    return site


def _check_cluster(cluster: ClusterSite, name: str) -> None:
    if cluster.transport == "ssh" and not cluster.host:
        raise UserError(f"{name}: cluster.host: is missing; name the login node")
    # No shell expands it: a folder with exactly this name would be created.
    if re.match(r"~(?!/.)|\$", cluster.remote_dir):
        raise UserError(
            f"{name}: cluster.remote_dir: {cluster.remote_dir!r} contains ~ or $, which only a "
            "shell expands; write an absolute path, or one relative to the account's home"
        )


def check_webhook(url: str, field: str) -> str:
    """Check a webhook's address, and return it; messages don't repeat it, as it may be a secret.

    Raises:
        UserError: if it is not an address, or is neither https nor on this machine.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise UserError(f"{field}: is not an address; write https://host/path")
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise UserError(f"{field}: sends alerts to {parts.hostname} unencrypted; use https")
    return url

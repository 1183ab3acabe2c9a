"""The site: which table, bucket, endpoints and cluster. One lab has one; jobs share it.

``slurmctl`` reads it from a YAML file; the Airflow hooks build it from connections.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_slurm_provider.coordinator.spec.validation import explain
from airflow_slurm_provider.coordinator.spec.yaml_file import read_yaml
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import split_s3_uri

_TOPIC = re.compile(r"arn:aws[a-z-]*:sns:([a-z0-9-]+):\d+:[A-Za-z0-9_.-]+")
_WEBHOOK_FIELDS = ("webhook_url", "webhook_url_env", "webhook_url_file")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StorageSite(_Strict):
    """The DynamoDB table, and the S3 address under which all jobs live."""

    table: str
    """The DynamoDB table; many jobs share it."""
    prefix: str
    """`s3://bucket/prefix` under which all jobs live."""


class AwsSite(_Strict):
    """Where AWS is. Credentials come from the standard chain, on both sides.

    With `node_role_arn` nodes get credentials of this role instead, limited to the job; and
    to reading below the S3 addresses of `node_read`.
    """

    region: str | None = None
    """The table's and the bucket's region."""
    profile: str | None = None
    """A profile of the AWS configuration, for the coordinator."""
    s3_endpoint_url: str | None = None
    """Where it is not AWS's own."""
    dynamodb_endpoint_url: str | None = None
    """The same."""
    sts_endpoint_url: str | None = None
    """The same."""
    sns_endpoint_url: str | None = None
    """The same."""
    node_role_arn: str | None = None
    """The role whose credentials workers get, limited to their job."""
    node_read: tuple[str, ...] = ()
    """Further S3 addresses that handlers may read with them: objects, or folders."""

    def environment(self) -> dict[str, str]:
        """What workers need to know, in the SDK's own variables; no secrets."""
        found = {
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL_S3": self.s3_endpoint_url,
            "AWS_ENDPOINT_URL_DYNAMODB": self.dynamodb_endpoint_url,
        }
        return {name: value for name, value in found.items() if value}


class ClusterSite(_Strict):
    """How the cluster is reached, and what its nodes offer.

    `transport` is ``ssh`` (to a login node), ``local`` (this machine is one) or
    ``embedded`` (no cluster: the array runs as processes of this machine).
    """

    transport: Literal["ssh", "local", "embedded"] = "ssh"
    """How Slurm's commands are run."""
    host: str = ""
    """The login node."""
    port: int = 22
    """Its SSH port."""
    user: str | None = None
    """The account there; this machine's if none."""
    key_file: str | None = None
    """The private key; the agent's and the usual ones where not given."""
    known_hosts: str | None = None
    """The file of known host keys."""
    remote_dir: str = ".airflow-slurm"
    """A folder there that nodes share and only the account can change; relative to its home."""
    embedded_dir: str | None = None
    """State of the embedded cluster."""
    python: str = "python3"
    """The nodes' Python, 3.10 or newer."""
    worker_command: str | None = None
    """Instead of the shipped worker: a command of the nodes' own."""


class AlertsSite(_Strict):
    """Where alerts of anomalies go, beside the log and the audit trail.

    A webhook's address is often a secret: `webhook_url_env` and `webhook_url_file` name the
    environment variable, or the file, that holds it.
    """

    sns_topic_arn: str | None = None
    """An SNS topic."""
    webhook_url: str | None = None
    """A webhook's https address."""
    webhook_url_env: str | None = None
    """The environment variable that holds it."""
    webhook_url_file: str | None = None
    """The file that holds it."""


class Site(_Strict):
    """All of it."""

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
    """Read the site's YAML file.

    Raises:
        UserError: if it is not there or not right.
    """
    file = Path(path).expanduser()
    raw = read_yaml(file, "site", "name the site's file with --site or SLURMCTL_CONFIG")
    return parse_site(raw, str(file))


def parse_cluster(raw: object, name: str) -> ClusterSite:
    """Check a cluster's settings; see `parse_site`."""
    try:
        cluster = ClusterSite.model_validate(raw)
    except ValidationError as error:
        raise UserError(explain(error, ClusterSite, name)) from error
    _check_cluster(cluster, name)
    return cluster


def parse_site(raw: object, name: str) -> Site:
    """Check a site's settings; `name` says in messages where they come from.

    Raises:
        UserError: naming the field, the value and the mend.
    """
    try:
        site = Site.model_validate(raw)
    except ValidationError as error:
        raise UserError(explain(error, Site, name)) from error
    split_s3_uri(site.storage.prefix, f"{name}: storage.prefix")
    _check_cluster(site.cluster, name)
    _check_alerts(site.alerts, name)
    return site


def _check_cluster(cluster: ClusterSite, name: str) -> None:
    if cluster.transport == "ssh" and not cluster.host:
        raise UserError(f"{name}: cluster.host: is missing; name the login node")
    # It is no word of a shell: such a folder would be made under this very name.
    if re.match(r"~(?!/.)|\$", cluster.remote_dir):
        raise UserError(
            f"{name}: cluster.remote_dir: {cluster.remote_dir!r} holds what only a shell replaces; "
            "write the whole path, or one relative to the account's home"
        )


def _check_alerts(alerts: AlertsSite, name: str) -> None:
    if alerts.sns_topic_arn and not _TOPIC.fullmatch(alerts.sns_topic_arn):
        raise UserError(
            f"{name}: alerts.sns_topic_arn: {alerts.sns_topic_arn!r} is not a topic; write "
            "arn:aws:sns:<region>:<account>:<name>"
        )
    given = [each for each in _WEBHOOK_FIELDS if getattr(alerts, each)]
    if len(given) > 1:
        raise UserError(f"{name}: alerts: has {' and '.join(given)}; give one of them")
    if alerts.webhook_url:
        check_webhook(alerts.webhook_url, f"{name}: alerts.webhook_url")


def check_webhook(url: str, field: str) -> str:
    """Return a webhook's address; messages don't repeat it, since it may be a secret.

    Raises:
        UserError: if it is not one, or is neither https nor on this machine.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise UserError(f"{field}: is no address; write https://host/path")
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise UserError(f"{field}: sends alerts to {parts.hostname} unencrypted; use https")
    return url

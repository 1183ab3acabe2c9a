"""The site: which table, bucket, endpoints and cluster. One lab has one; jobs share it.

``slurmctl`` reads it from a YAML file; the Airflow hooks build it from connections.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_slurm_provider.coordinator.validation import explain
from slurm_worker.errors import UserError
from slurm_worker.keys import split_s3_uri

_TOPIC = re.compile(r"arn:aws[a-z-]*:sns:([a-z0-9-]+):\d+:[A-Za-z0-9_.-]+")
_WEBHOOK_FIELDS = ("webhook_url", "webhook_url_env", "webhook_url_file")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StorageSite(_Strict):
    """The DynamoDB table, and the S3 address under which all jobs live."""

    table: str
    prefix: str


class AwsSite(_Strict):
    """Where AWS is. Credentials come from the standard chain, on both sides.

    With `node_role_arn` nodes get credentials of this role instead, limited to the job; and
    to reading below the S3 addresses of `node_read`.
    """

    region: str | None = None
    profile: str | None = None
    s3_endpoint_url: str | None = None
    dynamodb_endpoint_url: str | None = None
    sts_endpoint_url: str | None = None
    sns_endpoint_url: str | None = None
    node_role_arn: str | None = None
    node_read: tuple[str, ...] = ()

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
    host: str = ""
    port: int = 22
    user: str | None = None
    key_file: str | None = None
    known_hosts: str | None = None
    remote_dir: str = ".airflow-slurm"
    embedded_dir: str | None = None
    python: str = "python3"
    worker_command: str | None = None


class AlertsSite(_Strict):
    """Where alerts of anomalies go, beside the log and the audit trail.

    A webhook's address is often a secret: `webhook_url_env` and `webhook_url_file` name the
    environment variable, or the file, that holds it.
    """

    sns_topic_arn: str | None = None
    webhook_url: str | None = None
    webhook_url_env: str | None = None
    webhook_url_file: str | None = None


class Site(_Strict):
    """All of it."""

    storage: StorageSite
    aws: AwsSite = AwsSite()
    cluster: ClusterSite
    alerts: AlertsSite = AlertsSite()

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
    try:
        raw = yaml.safe_load(file.read_text())
    except OSError as error:
        raise UserError(
            f"site: {file} can't be read ({error.strerror}); name the site's file with --site or "
            "SLURMCTL_CONFIG"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}: is not YAML: {' '.join(str(error).split())}") from error
    return parse_site(raw, str(file))


def parse_cluster(raw: object, name: str) -> ClusterSite:
    """Check a cluster's settings; see `parse_site`."""
    try:
        cluster = ClusterSite.model_validate(raw)
    except ValidationError as error:
        raise UserError(explain(error, ClusterSite, name)) from error
    _check_host(cluster, name)
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
    _check_host(site.cluster, name)
    _check_alerts(site.alerts, name)
    return site


def _check_host(cluster: ClusterSite, name: str) -> None:
    if cluster.transport == "ssh" and not cluster.host:
        raise UserError(f"{name}: cluster.host: is missing; name the login node")


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

"""The clients of `bootstrap`, and the translation of their errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from airflow_slurm_provider.coordinator.services import open_session
from airflow_slurm_provider.coordinator.spec.site import Site
from slurm_worker.backends.dynamodb import dynamo_client
from slurm_worker.backends.errors import code_of, unanswered
from slurm_worker.backends.s3 import s3_client
from slurm_worker.errors import ServiceError

#: Error codes of services other than AWS's for a setting that they don't have.
_UNKNOWN = {"NotImplemented", "MethodNotAllowed", "UnknownOperationException", "501", "405"}


class Unsupported(ServiceError):
    """The service does not have the setting, or can't apply it; `problem` is the state."""


@dataclass(frozen=True, slots=True)
class Clients:
    """boto3's, of DynamoDB and S3; untyped, as they are given the definition's plain data."""

    dynamodb: Any
    s3: Any


def open_clients(site: Site) -> Clients:
    """Those of a site; connections are made when first used.

    Raises:
        UserError: if the profile or region is not there.
    """
    session = open_session(site)
    return Clients(
        dynamo_client(session, site.aws.dynamodb_endpoint_url),
        s3_client(session, site.aws.s3_endpoint_url),
    )


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Translate the SDK's errors to this project's.

    Raises:
        Unsupported: if the service has no such setting; one that is raised inside stays.
        ServiceError: if it can't be reached, or refuses.
    """
    try:
        yield
    except ClientError as error:
        if code_of(error) in _UNKNOWN:
            raise Unsupported(f"{what}: the service has no such setting") from error
        raise ServiceError(
            f"{what}: {error}; the guide on setting up AWS lists the permissions of bootstrap"
        ) from error
    except BotoCoreError as error:
        raise unanswered(what, error, "the site's aws section and the network") from error

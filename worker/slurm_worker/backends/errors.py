"""What errors of AWS's SDK mean to whoever reads them.

Most come before any answer of a service: no credentials, no region, no connection. What only one
service answers is translated where that is known, in `dynamo` and `s3`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)

from slurm_worker.errors import (
    AccessDenied,
    InvalidRequest,
    NoCredentials,
    ServiceError,
    Throttled,
    UserError,
)

_OF_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    SSOError,
    TokenRetrievalError,
)
#: Of DynamoDB (Programming.Errors) and S3 (ErrorResponses).
_THROTTLED = {
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "SlowDown",
    "ThrottlingException",
}
#: What the request itself is to blame for, so that it is in vain at any time and from any node.
_UNFIT = {
    "EntityTooLarge",
    "InvalidArgument",
    "InvalidRequest",
    "KeyTooLongError",
    "MaxMessageLengthExceeded",
    "ValidationException",
}
#: By HEAD S3 has no other code than the status.
_DENIED = {"403", "AccessDenied", "AccessDeniedException", "Forbidden"}
_LOOKED_FOR = (
    "credentials are looked for in AWS_* variables, ~/.aws (aws.profile or AWS_PROFILE names the "
    "profile), Airflow's aws connection and this machine's role: add or correct one of these"
)


def code_of(error: ClientError) -> str:
    """The code of a service's refusal."""
    return str(error.response.get("Error", {}).get("Code", ""))


def refused(where: str, error: ClientError) -> ServiceError:
    """The error for a request that a service answered, and did not do.

    Args:
        where: what the request was about.
        error: the SDK's, after its repeats.
    """
    code = code_of(error)
    kinds = {Throttled: _THROTTLED, AccessDenied: _DENIED, InvalidRequest: _UNFIT}
    kind = next((kind for kind, codes in kinds.items() if code in codes), ServiceError)
    return kind(f"{where}: {error}")


def unanswered(where: str, error: Exception, check: str) -> ServiceError:
    """The error for a request that the SDK could not make, or got no answer to.

    Args:
        where: what the request was about.
        error: the SDK's.
        check: what to look at where credentials are not the reason.
    """
    if isinstance(error, _OF_CREDENTIALS):
        return NoCredentials(f"{where}: {_sentence(error)}; {_LOOKED_FOR}")
    return ServiceError(f"{where}: {error}; check {check}")


@contextmanager
def settings_explained() -> Iterator[None]:
    """Around what makes a session or a client: no request is sent, so settings are at fault.

    Raises:
        UserError: naming what the SDK misses, or can't read.
    """
    try:
        yield
    except _OF_CREDENTIALS as error:
        raise UserError(f"aws: {_sentence(error)}; {_LOOKED_FOR}") from error
    except ProfileNotFound as error:
        raise UserError(
            f"aws: {_sentence(error)}; correct the site's aws section or AWS_PROFILE: profiles "
            "are those of ~/.aws/config and ~/.aws/credentials"
        ) from error
    except (BotoCoreError, ValueError) as error:
        raise UserError(
            f"aws: {error}; correct the site's aws section or AWS_* variables"
        ) from error


def _sentence(error: Exception) -> str:
    return str(error).rstrip(".")

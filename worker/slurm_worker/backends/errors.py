"""Translates errors of AWS's SDK into messages for a user.

Most come before any answer of a service: no credentials, no region, no connection. The answers
of only one service are translated in `dynamodb.py` and `s3.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from botocore import exceptions as sdk
from botocore.exceptions import BotoCoreError, ClientError

from slurm_worker.errors import (
    AccessDenied,
    InvalidRequest,
    NoCredentials,
    ServiceError,
    Throttled,
    UserError,
)

_OF_CREDENTIALS = (
    sdk.NoCredentialsError,
    sdk.PartialCredentialsError,
    sdk.CredentialRetrievalError,
    sdk.SSOError,
    sdk.TokenRetrievalError,
)
#: Of DynamoDB (Programming.Errors) and S3 (ErrorResponses).
_THROTTLED = {
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "SlowDown",
    "ThrottlingException",
}
#: The request itself is wrong: it fails at any time and from any node.
_INVALID = {
    "EntityTooLarge",
    "InvalidArgument",
    "InvalidRequest",
    "KeyTooLongError",
    "MaxMessageLengthExceeded",
    "ValidationException",
}
#: The code of an S3 answer to HEAD is its status.
_DENIED = {"403", "AccessDenied", "AccessDeniedException", "Forbidden"}
_LOOKED_FOR = (
    "credentials are looked for in AWS_* variables, ~/.aws (aws.profile or AWS_PROFILE names the "
    "profile), Airflow's aws connection and this machine's role: add or correct one of these"
)


def code_of(error: ClientError) -> str:
    """The code of a service's refusal."""
    return str(error.response.get("Error", {}).get("Code", ""))


def refused(where: str, error: ClientError) -> ServiceError:
    """The error for a request that a service answered and did not carry out.

    `where` names the table or object of the request. The SDK has made its retries.
    """
    code = code_of(error)
    kinds = {Throttled: _THROTTLED, AccessDenied: _DENIED, InvalidRequest: _INVALID}
    kind = next((kind for kind, codes in kinds.items() if code in codes), ServiceError)
    return kind(f"{where}: {error}")


def unanswered(where: str, error: Exception, check: str) -> ServiceError:
    """The error for a request to `where` that the SDK could not send, or that got no answer.

    If credentials are not the reason, the user should `check` this.
    """
    if isinstance(error, _OF_CREDENTIALS):
        return NoCredentials(f"{where}: {_sentence(error)}", _LOOKED_FOR)
    return ServiceError(f"{where}: {error}", f"check {check}")


@contextmanager
def settings_explained() -> Iterator[None]:
    """Wraps the creation of a session or client: it sends no request, so settings are wrong.

    Raises:
        UserError: naming the setting that is missing or can't be read.
    """
    try:
        yield
    except _OF_CREDENTIALS as error:
        raise UserError(f"aws: {_sentence(error)}", _LOOKED_FOR) from error
    except sdk.ProfileNotFound as error:
        raise UserError(
            f"aws: {_sentence(error)}",
            "correct the site's aws section or AWS_PROFILE: profiles "
            "are those of ~/.aws/config and ~/.aws/credentials",
        ) from error
    except (BotoCoreError, ValueError) as error:
        raise UserError(
            f"aws: {error}", "correct the site's aws section or AWS_* variables"
        ) from error


def _sentence(error: Exception) -> str:
    return str(error).rstrip(".")

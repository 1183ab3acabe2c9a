"""Translates errors of AWS's SDK into messages for a user.

Most come before any answer of a service: no credentials, no region, no connection. Others are
refusals that every service knows, such as expired credentials. The answers of only one service are
translated in `dynamodb.py` and `s3.py`.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime

from botocore import exceptions as sdk
from botocore.exceptions import BotoCoreError, ClientError

from slurm_worker.errors import (
    AccessDenied,
    ExpiredCredentials,
    InvalidRequest,
    NoCredentials,
    ServiceError,
    Throttled,
    UserError,
    WrongClock,
    WrongSetting,
)

_OF_CREDENTIALS = (
    sdk.NoCredentialsError,
    sdk.PartialCredentialsError,
    sdk.CredentialRetrievalError,
    sdk.SSOError,
    sdk.TokenRetrievalError,
    # `aws login` is newer than the oldest SDK that we support.
    getattr(sdk, "LoginError", sdk.SSOError),
)
_EXPIRED_SESSIONS = (
    sdk.UnauthorizedSSOTokenError,
    getattr(sdk, "LoginRefreshRequired", sdk.UnauthorizedSSOTokenError),
)
#: What the SDK raises instead of sending a request, or if no answer comes. It raises a plain
#: RuntimeError if the credentials that it has read again have expired too.
UNANSWERED = (BotoCoreError, RuntimeError)
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
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
#: What services write about a signature whose time is not theirs. Each of them has a code of its
#: own for it, which some also use for a wrong secret key.
_SKEWED = re.compile(
    "signature (has )?expired|signature not yet current|request has expired|too skewed|"
    "difference between the request time",
    re.IGNORECASE,
)
_SKEWED_CODE = "RequestTimeTooSkewed"
#: Differences below this may come from a slow request.
_WORTH_SAYING_S = 60.0
_REDIRECTS = range(300, 400)
RENEW = (
    "renew them where they come from, such as aws sso login; workers with aws.node_role_arn get "
    "new ones while slurmctl wait or an Airflow task waits for the job, others when you submit it "
    "again"
)
SET_CLOCK = "set the clock by NTP; slurmctl doctor shows by how much it is wrong"
_LOOKED_FOR = (
    "credentials are looked for in AWS_* variables, ~/.aws (aws.profile or AWS_PROFILE names the "
    "profile), Airflow's aws connection and this machine's role: add or correct one of these"
)


def code_of(error: ClientError) -> str:
    """The code of a service's refusal."""
    return str(error.response.get("Error", {}).get("Code", ""))


def text_of(error: ClientError) -> str:
    """A service's own words about a refusal."""
    return str(error.response.get("Error", {}).get("Message", ""))


def headers_of(error: ClientError) -> Mapping[str, str]:
    """The headers of a refusal, by their names in lower case."""
    found = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return {name.lower(): value for name, value in found.items()}


def status_of(error: ClientError) -> int:
    """The HTTP status of a refusal."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def is_redirect(error: ClientError) -> bool:
    """Whether a service sends the caller elsewhere, where the SDK does not follow."""
    return status_of(error) in _REDIRECTS


def words_of(error: ClientError) -> str:
    """A refusal's code and text, without the SDK's own words around them."""
    return ": ".join(filter(None, (code_of(error), text_of(error).rstrip("."))))


def refused(
    where: str, error: ClientError, endpoint: str = "the endpoint", fix: str = ""
) -> ServiceError:
    """The error for a request that a service answered and did not carry out.

    `where` names the table or object of the request, and `endpoint` the setting of the service's
    address. `fix` is what to do about an error that is not known here. The SDK has made its
    retries.
    """
    code = code_of(error)
    if code in _EXPIRED:
        said = words_of(error)
        return ExpiredCredentials(f"{where}: the AWS credentials have expired ({said})", RENEW)
    if code == _SKEWED_CODE or _SKEWED.search(text_of(error)):
        return WrongClock(f"{where}: {_clock(error)} ({words_of(error)})", SET_CLOCK)
    if is_redirect(error):
        to = headers_of(error).get("location", "another address")
        return WrongSetting(f"{where}: the service redirects to {to}", f"correct {endpoint}")
    kinds = {Throttled: _THROTTLED, AccessDenied: _DENIED, InvalidRequest: _INVALID}
    kind = next((kind for kind, codes in kinds.items() if code in codes), ServiceError)
    return kind(f"{where}: {error}", fix)


def unanswered(where: str, error: Exception, check: str) -> ServiceError:
    """The error for a request to `where` that the SDK could not send, or that got no answer.

    If credentials are not the reason, the user should `check` this.
    """
    if isinstance(error, _EXPIRED_SESSIONS) or "credentials are still expired" in str(error):
        return ExpiredCredentials(
            f"{where}: the AWS credentials have expired ({_sentence(error)})", RENEW
        )
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


def _clock(error: ClientError) -> str:
    """What is wrong with this machine's clock, by the date of the refusal."""
    whose = f"the clock of {socket.gethostname()!r}"
    try:
        ahead_s = time.time() - parsedate_to_datetime(headers_of(error)["date"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return f"{whose} is wrong"
    if abs(ahead_s) < _WORTH_SAYING_S:
        return f"{whose} was wrong when the request was made"
    return (
        f"{whose} is {abs(ahead_s):,.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the service's"
    )


def _sentence(error: Exception) -> str:
    return str(error).rstrip(".")

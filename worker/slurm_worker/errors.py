"""Error classes, the exceptions a handler raises, and the classifier.

A handler raises `ItemError`, `RateLimited` or `FatalError`. The others are the project's own.
The classifier knows exceptions by qualified name, so that the node imports no HTTP library.
"""

from __future__ import annotations

import contextlib
import errno
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from traceback import walk_tb
from typing import Any

from slurm_worker.printable import encodable, printable_lines


class ErrorClass(str, Enum):
    """Why something failed: one closed list, used by items, tasks and retry policies."""

    NETWORK = "network"  #: connection refused, reset or dropped; 5xx answers
    RATE_LIMITED = "rate_limited"  #: the server answered 429
    TIMEOUT = "timeout"  #: no answer within the time allowed
    AUTH = "auth"  #: 401 or 403
    NOT_FOUND = "not_found"  #: 404 or 410
    BAD_INPUT = "bad_input"  #: the item itself can't be processed
    HANDLER_BUG = "handler_bug"  #: the handler raised what it did not mean to
    OUT_OF_MEMORY = "out_of_memory"  #: MemoryError, or Slurm's OUT_OF_MEMORY
    WALLTIME = "walltime"  #: Slurm's TIMEOUT
    PREEMPTED = "preempted"  #: Slurm's PREEMPTED
    NODE_FAILURE = "node_failure"  #: Slurm's NODE_FAIL or BOOT_FAIL, a broken scratch disk
    CANCELLED = "cancelled"  #: Slurm's CANCELLED
    WORKER_CRASH = "worker_crash"  #: the worker died and Slurm doesn't say why
    UNKNOWN = "unknown"  #: nothing above fits


class SlurmWorkerError(Exception):
    """Something went wrong in airflow-slurm-provider."""

    def __init__(self, message: str = "", fix: str = "") -> None:
        #: What happened, and what to do about it: the error's text without and with the fix.
        self.problem, self.fix = message or self.__doc__ or "", fix
        super().__init__(f"{self.problem}; {fix}" if fix else self.problem)


class UserError(SlurmWorkerError):
    """A configuration, argument or input is wrong; exit code 2. The text has field, value, fix."""

    def __init__(self, message: str = "", fix: str = "") -> None:
        super().__init__(printable_lines(message), printable_lines(fix))


class ServiceError(SlurmWorkerError):
    """A service can't be reached, or refused the request; exit code 3."""

    def __init__(self, message: str = "", fix: str = "") -> None:
        super().__init__(printable_lines(message), printable_lines(fix))


class Throttled(ServiceError):
    """A service has throttled a request after all retries; it will accept it later."""


class InvalidRequest(ServiceError):
    """A service can never do this request, such as one that is too large.

    The service has not failed: the task is the cause.
    """


class Missing(ServiceError):
    """There is no such object in the store."""


class AccessDenied(ServiceError):
    """These credentials may not do this."""


class NoCredentials(ServiceError):
    """AWS's SDK finds no credentials that it can use.

    No task is the cause, and another node may have credentials. In a command: exit code 2.
    """


class ExpiredCredentials(NoCredentials):
    """The AWS credentials have expired."""


class WrongClock(ServiceError):
    """A service refuses requests because the clock of this machine is wrong.

    No task is the cause, and another node may have the right time.
    """


class WrongSetting(ServiceError):
    """A service can't be used with the site's settings, such as a bucket of another region.

    No task is the cause: a `UserError` would fail the task on a node. In a command: exit code 2.
    """


class HostUnreachable(UserError, ServiceError):
    """The login node that the site names can't be reached.

    The name may be wrong, which is the user's to fix (exit code 2). Or the node is down for an
    hour, which is worth another try (Airflow's retries).
    """


class ItemError(SlurmWorkerError):
    """This item failed, and the handler knows why.

    Args:
        error_class: an `ErrorClass` or its value, such as ``"bad_input"``.
        message: what a person should read about it.
    """

    def __init__(self, error_class: ErrorClass | str, message: str) -> None:
        super().__init__(message)
        try:
            self.error_class = ErrorClass(error_class)
        except ValueError:
            raise ValueError(
                f"{error_class!r} is not an error class; use one of "
                f"{', '.join(known.value for known in ErrorClass)} ({message})"
            ) from None


class RateLimited(ItemError):
    """The server limits the rate.

    Args:
        retry_after: seconds that the server wants us to wait; None if unknown.
        message: what a person should read about it.
    """

    def __init__(self, retry_after: float | None = None, message: str = "rate limited") -> None:
        super().__init__(ErrorClass.RATE_LIMITED, message)
        self.retry_after = retry_after


class FatalError(SlurmWorkerError):
    """Nothing of this job can succeed, as with a wrong API key: stop all of its tasks."""


@dataclass(frozen=True, slots=True)
class ClassRule:
    """A job's rule for the class of its errors; each given condition must hold."""

    error_class: ErrorClass  #: the class of exceptions that match
    exception: str = ""  #: qualified name of the exception's class or of one of its bases
    message: str = ""  #: a regular expression that is searched for in the exception's text
    status: int = 0  #: the HTTP status that the exception carries

    def matches(self, error: BaseException) -> bool:
        """Whether the rule is about this exception."""
        return (
            (not self.exception or self.exception in _names(error))
            and (not self.status or self.status == _http_status(error))
            and (not self.message or re.search(self.message, _text(error)) is not None)
        )


#: Classes for which an immediate second try inside the worker may succeed.
TRANSIENT = frozenset(
    {ErrorClass.NETWORK, ErrorClass.RATE_LIMITED, ErrorClass.TIMEOUT, ErrorClass.UNKNOWN}
)

_BY_NAME = {
    "requests.exceptions.Timeout": ErrorClass.TIMEOUT,
    "requests.exceptions.ConnectionError": ErrorClass.NETWORK,
    "requests.exceptions.ChunkedEncodingError": ErrorClass.NETWORK,
    "httpx.TimeoutException": ErrorClass.TIMEOUT,
    "httpx.TransportError": ErrorClass.NETWORK,
    "aiohttp.client_exceptions.ServerTimeoutError": ErrorClass.TIMEOUT,
    "aiohttp.client_exceptions.ClientConnectionError": ErrorClass.NETWORK,
    "aiohttp.client_exceptions.ClientPayloadError": ErrorClass.NETWORK,
    "urllib3.exceptions.TimeoutError": ErrorClass.TIMEOUT,
    "urllib3.exceptions.HTTPError": ErrorClass.NETWORK,
    "botocore.exceptions.ConnectionError": ErrorClass.NETWORK,
    "botocore.exceptions.HTTPClientError": ErrorClass.NETWORK,
    "http.client.HTTPException": ErrorClass.NETWORK,
    "ssl.SSLError": ErrorClass.NETWORK,
    "socket.gaierror": ErrorClass.NETWORK,
    "asyncio.exceptions.TimeoutError": ErrorClass.TIMEOUT,
    "builtins.TimeoutError": ErrorClass.TIMEOUT,
    "builtins.ConnectionError": ErrorClass.NETWORK,
    "builtins.MemoryError": ErrorClass.OUT_OF_MEMORY,
}

_BY_ERRNO = {
    errno.ENOSPC: ErrorClass.NODE_FAILURE,
    errno.EROFS: ErrorClass.NODE_FAILURE,
    errno.EIO: ErrorClass.NODE_FAILURE,
    errno.ENOMEM: ErrorClass.OUT_OF_MEMORY,
    errno.ETIMEDOUT: ErrorClass.TIMEOUT,
    errno.ENETUNREACH: ErrorClass.NETWORK,
    errno.EHOSTUNREACH: ErrorClass.NETWORK,
}

_WITH_PLACE = re.compile(r"(.*) \(([^()]+:\d+ in [^()]+)\)", re.DOTALL)


def classify_status(status: int) -> ErrorClass:
    """The class of an HTTP status of 400 or above."""
    special = {
        401: ErrorClass.AUTH,
        403: ErrorClass.AUTH,
        404: ErrorClass.NOT_FOUND,
        408: ErrorClass.TIMEOUT,
        410: ErrorClass.NOT_FOUND,
        429: ErrorClass.RATE_LIMITED,
        504: ErrorClass.TIMEOUT,
    }
    return special.get(status, ErrorClass.NETWORK if status >= 500 else ErrorClass.BAD_INPUT)


def classify(error: BaseException, rules: Sequence[ClassRule] = ()) -> ErrorClass:
    """The class of an exception that a handler raised.

    The cause chain is searched from the outermost exception inwards; the first exception with a
    known class decides, and without one it is the handler's bug. The class of an `ItemError`
    comes first, then the job's rules, then the known exceptions. Raises nothing, whatever the
    exception's own attributes do.
    """
    for exception in _chain(error):
        with contextlib.suppress(Exception):
            if not isinstance(exception, ItemError):
                for rule in rules:
                    if rule.matches(exception):
                        return rule.error_class
            found = _classify_one(exception)
            if found is not None:
                return found
    return ErrorClass.HANDLER_BUG


def place_of(error: BaseException, folder: str) -> str:
    """Where in the code below a folder an exception was raised: ``tools.py:12 in parse``.

    The innermost such line of the traceback; empty where there is none.
    """
    if not folder:
        return ""
    for frame, line in reversed(list(walk_tb(error.__traceback__))):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(folder):
            return encodable(f"{path.relative_to(folder)}:{line} in {frame.f_code.co_name}")
    return ""


def with_place(message: str, place: str) -> str:
    """A message and the place in the user's code, as a person reads them."""
    return f"{message} ({place})" if place else message


def split_place(text: str) -> tuple[str, str]:
    """The message and the place of what releases up to 0.1 stored as one text."""
    found = _WITH_PLACE.fullmatch(text)
    return (found[1], found[2]) if found else (text, "")


def describe(error: BaseException, limit: int = 500) -> str:
    """One line about an exception: its type and message, at most `limit` characters.

    Raises nothing, whatever the exception's own `__str__` does.
    """
    text = _text(error)
    if not text or not isinstance(error, SlurmWorkerError):
        text = f"{type(error).__name__}: {text}"
    return _one_line(text)[:limit]


def problem_and_fix(error: BaseException, limit: int = 500) -> tuple[str, str]:
    """`describe` in two parts, with at most `limit` characters of the first.

    Errors of services and of users may have a fix; it is empty for all others.
    """
    if isinstance(error, (UserError, ServiceError)):
        return _one_line(error.problem)[:limit], _one_line(error.fix)
    return describe(error, limit), ""


def retry_after_of(error: BaseException) -> float | None:
    """Seconds that the server wants us to wait, if the exception has them."""
    for exception in _chain(error):
        with contextlib.suppress(Exception):
            found = _retry_after(exception)
            if found is not None and math.isfinite(seconds := float(found)) and seconds >= 0:
                return seconds
        if isinstance(exception, RateLimited):
            return None
    return None


def _retry_after(error: BaseException) -> Any:
    """The value in the exception or in its response's headers; None if there is none."""
    if isinstance(error, RateLimited):
        return error.retry_after
    response = getattr(error, "response", None)
    headers = getattr(error, "headers", None) or getattr(response, "headers", None)
    return None if headers is None else headers.get("Retry-After")


def _one_line(text: str) -> str:
    return encodable(" ".join(text.split()))


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failed:
        return f"(its text can't be read: {type(failed).__name__})"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _classify_one(error: BaseException) -> ErrorClass | None:
    if isinstance(error, ItemError):
        return ErrorClass(error.error_class)
    status = _http_status(error)
    if status is not None and status >= 400:
        return classify_status(status)
    for name in _names(error):
        if name in _BY_NAME:
            return _BY_NAME[name]
    if isinstance(error, OSError):
        if error.errno in _BY_ERRNO:
            return _BY_ERRNO[error.errno]
        # urllib.error.URLError wraps the real reason instead of chaining it.
        reason = getattr(error, "reason", None)
        if isinstance(reason, BaseException):
            return _classify_one(reason) or ErrorClass.NETWORK
    return None


def _names(error: BaseException) -> list[str]:
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]


def _http_status(error: BaseException) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600:
                return value
    return None

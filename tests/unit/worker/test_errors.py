"""Every failure gets the class that a retry policy can act on."""

from __future__ import annotations

import errno
import io
import pickle
import socket
import urllib.error
from email.message import Message

import pytest

from slurm_worker.errors import (
    ClassRule,
    ErrorClass,
    HostUnreachable,
    ItemError,
    RateLimited,
    ServiceError,
    UserError,
    classify,
    classify_status,
    describe,
    problem_and_fix,
    retry_after_of,
)


def http_error(status: int, **headers: str) -> urllib.error.HTTPError:
    message = Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return urllib.error.HTTPError("http://x", status, "text", message, io.BytesIO())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError("x"), ErrorClass.NETWORK),
        (ConnectionRefusedError("x"), ErrorClass.NETWORK),
        (urllib.error.URLError(ConnectionRefusedError("x")), ErrorClass.NETWORK),
        (urllib.error.URLError(TimeoutError("x")), ErrorClass.TIMEOUT),
        (socket.gaierror("x"), ErrorClass.NETWORK),
        (TimeoutError("x"), ErrorClass.TIMEOUT),
        (MemoryError(), ErrorClass.OUT_OF_MEMORY),
        (OSError(errno.ENOSPC, "full"), ErrorClass.NODE_FAILURE),
        (OSError(errno.EROFS, "read-only"), ErrorClass.NODE_FAILURE),
        (http_error(500), ErrorClass.NETWORK),
        (http_error(429), ErrorClass.RATE_LIMITED),
        (http_error(401), ErrorClass.AUTH),
        (http_error(404), ErrorClass.NOT_FOUND),
        (http_error(422), ErrorClass.BAD_INPUT),
        (http_error(504), ErrorClass.TIMEOUT),
        (ItemError("bad_input", "x"), ErrorClass.BAD_INPUT),
        (RateLimited(3), ErrorClass.RATE_LIMITED),
        (KeyError("x"), ErrorClass.HANDLER_BUG),
        (ZeroDivisionError(), ErrorClass.HANDLER_BUG),
        (OSError(errno.ENOENT, "no file"), ErrorClass.HANDLER_BUG),
    ],
)
def test_an_exception_has_its_class(error: BaseException, expected: ErrorClass) -> None:
    assert classify(error) is expected


def test_the_cause_decides_if_the_outer_exception_has_no_class() -> None:
    error = RuntimeError("fetch failed")
    error.__cause__ = ConnectionResetError("dropped")
    assert classify(error) is ErrorClass.NETWORK


def test_every_failing_status_has_a_class() -> None:
    assert all(isinstance(classify_status(status), ErrorClass) for status in range(400, 600))


def test_retry_after_is_read_from_headers_and_exceptions() -> None:
    assert retry_after_of(http_error(429, Retry_After="7")) == 7
    assert retry_after_of(RateLimited(2.5)) == 2.5
    assert retry_after_of(http_error(429)) is None
    assert retry_after_of(http_error(429, Retry_After="tomorrow")) is None


def test_a_description_is_one_line_of_bounded_length() -> None:
    text = describe(ValueError("a\nb" + "x" * 1000))
    assert "\n" not in text
    assert len(text) == 500


def test_an_error_has_its_problem_and_its_fix_as_fields_and_one_text() -> None:
    error = ServiceError("cluster: no answer; 3\x1b tries", "try again")
    for copied in (error, pickle.loads(pickle.dumps(error))):
        assert str(copied) == "cluster: no answer; 3\\x1b tries; try again"
        assert problem_and_fix(copied) == ("cluster: no answer; 3\\x1b tries", "try again")
    assert problem_and_fix(UserError("a; b")) == ("a; b", "")
    assert problem_and_fix(ValueError("a; b")) == ("ValueError: a; b", "")


def test_an_item_error_refuses_a_class_that_is_not_in_the_list() -> None:
    with pytest.raises(ValueError, match=r"'weird' is not an error class; .*\(why it failed\)"):
        ItemError("weird", "why it failed")


def test_an_unreachable_host_is_a_user_error_and_a_service_error() -> None:
    assert issubclass(HostUnreachable, UserError)
    assert issubclass(HostUnreachable, ServiceError)


class QuotaError(ConnectionError):
    status_code = 418


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        (ClassRule(ErrorClass.AUTH, message=r"no \w+ left"), True),
        (ClassRule(ErrorClass.AUTH, message="no quota$"), False),
        (ClassRule(ErrorClass.AUTH, status=418), True),
        (ClassRule(ErrorClass.AUTH, status=419), False),
        (ClassRule(ErrorClass.AUTH, exception="builtins.ConnectionError"), True),
        (ClassRule(ErrorClass.AUTH, exception="ConnectionError"), False),
        (ClassRule(ErrorClass.AUTH, exception="builtins.OSError", message="quota"), True),
        (ClassRule(ErrorClass.AUTH, exception="builtins.OSError", message="quote"), False),
    ],
)
def test_a_jobs_rule_comes_before_the_known_exceptions(rule: ClassRule, matches: bool) -> None:
    wrapped = RuntimeError("while fetching")
    wrapped.__cause__ = QuotaError("no quota left")
    assert (classify(wrapped, [rule]) is ErrorClass.AUTH) == matches


def test_the_class_of_an_item_error_comes_before_the_jobs_rules() -> None:
    rule = ClassRule(ErrorClass.AUTH, message=".")
    assert classify(ItemError("network", "reset"), [rule]) is ErrorClass.NETWORK

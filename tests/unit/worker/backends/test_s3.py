"""What stores answer becomes a yes, a no, or one line that says what to change."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from slurm_worker.backends.checksums import Checksums
from slurm_worker.backends.s3 import S3Objects, s3_client
from slurm_worker.errors import (
    AccessDenied,
    ExpiredCredentials,
    ServiceError,
    UserError,
    WrongClock,
    WrongSetting,
)
from tests.unit.answers import (
    Answer,
    Answering,
    Request,
    Server,
    page_of_a_proxy,
    s3_refusal,
    serving,
    session,
)

#: As each of these stores words its refusal of the SDK's checksums.
REFUSED_CHECKSUMS = [
    (501, "NotImplemented", "Header 'x-amz-checksum-algorithm' with value 'CRC32' not implemented"),
    (
        400,
        "InvalidArgument",
        "Unsupported header 'x-amz-checksum-crc32' received for this API call.",
    ),
    (
        400,
        "InvalidArgument",
        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD or a valid sha256 value.",
    ),
    (400, "InvalidRequest", "The value specified in the x-amz-trailer header is not supported"),
    (400, "XAmzContentSHA256Mismatch", "The Content-SHA256 you specified did not match"),
    (400, "InvalidRequest", "Missing required header for this request: Content-MD5"),
    (411, "MissingContentLength", "You must provide the Content-Length HTTP header."),
]


@contextmanager
def store(
    answering: Answering, checksums: Checksums | None = None
) -> Iterator[tuple[S3Objects, Server]]:
    """The bucket ``lab`` of a store that answers so."""
    with serving(answering) as server:
        yield S3Objects(s3_client(session(), server.url, checksums), "lab"), server


class Conditional:
    """Refuses the first conditional PUTs with these answers, in turn; takes all others."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.written: list[bytes] = []

    def __call__(self, request: Request) -> Answer:
        if self.answers and {"if-match", "if-none-match"} & request.headers.keys():
            return self.answers.pop(0)
        self.written.append(request.body)
        return Answer(headers={"ETag": '"1"'})


@pytest.mark.parametrize(
    "answer",
    [
        s3_refusal(412, "PreconditionFailed"),
        s3_refusal(412, ""),
        s3_refusal(404, "NoSuchKey"),
        s3_refusal(404, ""),
    ],
)
def test_an_object_that_was_changed_or_deleted_is_not_replaced(answer: Answer) -> None:
    told = Conditional(answer)
    with store(told) as (objects, _):
        assert not objects.put_if("a", b"x", '"tag"')
    assert told.written == []


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted", ""])
@pytest.mark.parametrize(
    "write",
    [
        lambda objects: objects.put_if("a", b"x", '"tag"'),
        lambda objects: objects.put_new("a", b"x"),
    ],
)
def test_conditional_writes_that_collide_are_repeated(
    code: str, write: Callable[[S3Objects], bool]
) -> None:
    told = Conditional(s3_refusal(409, code), s3_refusal(409, code))
    with store(told) as (objects, _):
        assert write(objects)
    assert told.written == [b"x"]


def test_a_conflict_of_any_other_request_is_repeated_too() -> None:
    answers = [s3_refusal(409, "OperationAborted"), Answer(headers={"ETag": '"1"'})]
    with store(lambda _: answers.pop(0)) as (objects, server):
        objects.put("a", b"x")
    assert [request.method for request in server.requests] == ["PUT", "PUT"]


def test_a_conflict_that_stays_is_an_error_after_five_tries() -> None:
    with (
        store(lambda _: s3_refusal(409, "OperationAborted")) as (objects, server),
        pytest.raises(ServiceError, match=r"s3://lab/a: .*OperationAborted"),
    ):
        objects.put_new("a", b"x")
    assert len(server.requests) == 5


def test_a_conflict_about_the_bucket_itself_is_not_repeated() -> None:
    with (
        store(lambda _: s3_refusal(409, "BucketAlreadyExists")) as (objects, server),
        pytest.raises(ServiceError, match="BucketAlreadyExists"),
    ):
        objects.put("a", b"x")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer", [s3_refusal(501, "NotImplemented", "A header you provided"), s3_refusal(501, "")]
)
@pytest.mark.parametrize(
    "write",
    [
        lambda objects: objects.put_if("a", b"x", '"tag"'),
        lambda objects: objects.put_new("a", b"x"),
    ],
)
def test_a_store_that_does_not_implement_conditions_behaves_as_one_that_ignores_them(
    answer: Answer, write: Callable[[S3Objects], bool]
) -> None:
    told = Conditional(answer)
    with store(told) as (objects, _):
        assert write(objects)
    assert told.written == [b"x"]


def test_every_other_refusal_is_an_error() -> None:
    with (
        store(lambda _: s3_refusal(400, "Unexpected")) as (objects, _),
        pytest.raises(ServiceError, match="s3://lab/a"),
    ):
        objects.put_if("a", b"x", '"tag"')


#: The verbs, each with the kind of request that it makes.
VERBS: list[Callable[[S3Objects], object]] = [
    lambda objects: objects.get("a"),
    lambda objects: objects.put("a", b"x"),
    lambda objects: objects.put_new("a", b"x"),
    lambda objects: objects.verify(),
    lambda objects: objects.size("a"),
    lambda objects: list(objects.list("a")),
    lambda objects: objects.delete_many(["a"]),
]


def moved(_: Request) -> Answer:
    place = {"x-amz-bucket-region": "eu-west-1"}
    return s3_refusal(301, "PermanentRedirect", "Please send all future requests there.", place)


def malformed(request: Request) -> Answer:
    if "/eu-west-1/" in request.headers["authorization"]:
        return s3_refusal(403, "AccessDenied")
    text = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region is wrong</Message>"
    return Answer(400, f"{text}<Region>eu-west-1</Region></Error>".encode())


@pytest.mark.parametrize("verb", VERBS)
def test_a_bucket_in_another_region_is_one_line_with_the_setting(
    verb: Callable[[S3Objects], object],
) -> None:
    with store(moved) as (objects, server), pytest.raises(WrongSetting) as told:
        verb(objects)
    line = str(told.value)
    assert line == (
        f"bucket 'lab' is in region eu-west-1, and {server.url} with region "
        "us-east-1 does not serve it; set aws.region: eu-west-1 in the site file, and name an "
        "endpoint of this region in aws.s3_endpoint_url"
    )


@pytest.mark.parametrize("verb", VERBS)
def test_a_redirect_that_names_no_region_is_one_line_with_its_address(
    verb: Callable[[S3Objects], object],
) -> None:
    to = {"Location": "https://s3.lab.example/"}
    with (
        store(lambda _: page_of_a_proxy(301, "301 Moved Permanently", to)) as (objects, server),
        pytest.raises(WrongSetting) as told,
    ):
        verb(objects)
    line = str(told.value)
    assert line.startswith(
        f"{server.url} with region us-east-1 does not serve bucket 'lab': it "
        "redirects to https://s3.lab.example/; "
    )
    assert "aws.region" in line
    assert "aws.s3_endpoint_url" in line
    assert "\n" not in line


def test_the_region_of_a_refused_signature_is_used() -> None:
    with store(malformed) as (objects, server), pytest.raises(AccessDenied):
        objects.get("a")
    assert len(server.requests) == 2


@pytest.mark.parametrize(("status", "code", "message"), REFUSED_CHECKSUMS)
@pytest.mark.parametrize(
    "write",
    [
        lambda objects: objects.put("a", b"x"),
        lambda objects: objects.put_new("a", b"x"),
        lambda objects: objects.delete_many(["a"]),
    ],
)
def test_a_refusal_of_checksums_names_the_setting(
    status: int, code: str, message: str, write: Callable[[S3Objects], object]
) -> None:
    with (
        store(lambda _: s3_refusal(status, code, message)) as (objects, _),
        pytest.raises(WrongSetting, match=r"aws\.checksums: when_required") as told,
    ):
        write(objects)
    assert message.split("'")[0] in str(told.value)


def test_without_optional_checksums_a_refusal_is_not_blamed_on_them() -> None:
    answer = s3_refusal(400, "InvalidRequest", "Missing required header: Content-MD5")
    with (
        store(lambda _: answer, "when_required") as (objects, _),
        pytest.raises(ServiceError) as told,
    ):
        objects.put("a", b"x")
    assert "aws.checksums" not in str(told.value)


def test_when_required_no_request_has_a_checksum_of_the_sdk() -> None:
    answer = Answer(headers={"ETag": '"1"'}, body=b"<DeleteResult></DeleteResult>")
    with store(lambda _: answer, "when_required") as (objects, server):
        objects.put("a", b"x")
        objects.get("a")
        objects.delete_many(["a"])
    assert len(server.requests) == 3
    for request in server.requests:
        names = {name for name in request.headers if "checksum" in name or "trailer" in name}
        assert names == set()
        assert request.headers.get("content-encoding", "") == ""
    *_, deleted = server.requests
    digest = base64.b64encode(hashlib.md5(deleted.body, usedforsecurity=False).digest())
    assert deleted.headers["content-md5"] == digest.decode()


class Kept(Exception):
    """The request was kept, and not sent."""


@pytest.mark.parametrize(
    ("checksums", "trailers"), [(None, ["x-amz-checksum-crc32"]), ("when_required", [])]
)
def test_over_https_only_the_setting_keeps_the_sdk_from_sending_trailers(
    checksums: Checksums | None, trailers: list[str]
) -> None:
    client: Any = s3_client(session(), "https://s3.lab.example", checksums)
    sent: list[dict[str, Any]] = []

    def keep(request: Any, **_: object) -> None:
        sent.append({name.lower(): value for name, value in request.headers.items()})
        raise Kept

    client.meta.events.register("before-send.s3", keep)
    with pytest.raises(Kept):
        S3Objects(client, "lab").put("a", b"x")
    (headers,) = sent
    assert [
        str(headers[name], "ascii") for name in ["x-amz-trailer"] if name in headers
    ] == trailers
    assert ("transfer-encoding" in headers) == bool(trailers)


def test_the_nodes_variables_switch_checksums_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    answer = Answer(body=b"<DeleteResult></DeleteResult>")
    with store(lambda _: answer) as (objects, server):
        objects.delete_many(["a"])
        objects.get("a")
    for request in server.requests:
        assert not [name for name in request.headers if "checksum" in name]


def test_a_checksum_that_is_not_that_of_the_bytes_is_an_error_that_names_the_setting() -> None:
    answer = Answer(headers={"x-amz-checksum-crc32": "AAAAAA=="}, body=b"x")
    with (
        store(lambda _: answer) as (objects, _),
        pytest.raises(ServiceError, match=r"s3://lab/a: .*aws\.checksums: when_required"),
    ):
        objects.get("a")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("status", "code", "message", "kind", "fix"),
    [
        (400, "ExpiredToken", "The provided token has expired.", ExpiredCredentials, "renew"),
        (403, "RequestTimeTooSkewed", "The difference is too large.", WrongClock, "NTP"),
    ],
)
def test_expired_credentials_and_wrong_clocks_are_named(
    verb: Callable[[S3Objects], object],
    status: int,
    code: str,
    message: str,
    kind: type[ServiceError],
    fix: str,
) -> None:
    with (
        store(lambda _: s3_refusal(status, code, message)) as (objects, _),
        pytest.raises(kind) as told,
    ):
        verb(objects)
    assert fix in told.value.fix
    assert code in str(told.value)


def test_a_bucket_that_denies_access_is_the_users_mistake() -> None:
    with (
        store(lambda _: s3_refusal(403, "AccessDenied")) as (objects, _),
        pytest.raises(UserError, match="no access to bucket 'lab'"),
    ):
        objects.verify()

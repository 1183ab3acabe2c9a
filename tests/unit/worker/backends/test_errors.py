"""Errors of the SDK before any answer name their cause, and count against no task."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest
from botocore.exceptions import UnauthorizedSSOTokenError
from botocore.stub import Stubber

from slurm_worker.backends.clock import AwsClock
from slurm_worker.backends.dynamodb import DynamoRows, dynamo_client
from slurm_worker.backends.s3 import S3Objects, s3_client
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
from tests.unit.answers import Answer, dynamo_refusal, page_of_a_proxy, serving, session


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the SDK could take credentials or an endpoint from."""
    for name in (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"),
        *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_DYNAMODB"),
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


def read_row() -> object:
    return DynamoRows(dynamo_client(), "backfills", AwsClock()).get("pk", "sk")


def read_object() -> object:
    return S3Objects(s3_client(), "lab").get("key")


@pytest.mark.parametrize("read", [read_row, read_object])
def test_missing_credentials_are_an_error_of_their_own(
    read: Callable[[], object],
) -> None:
    with pytest.raises(
        NoCredentials, match=r"Unable to locate credentials; .* AWS_PROFILE"
    ) as told:
        read()
    assert isinstance(told.value, ServiceError)
    assert not isinstance(told.value, UserError), "a worker would fail the task for it"
    assert "endpoint" not in str(told.value)


@pytest.mark.parametrize("read", [read_row, read_object])
def test_credentials_that_nobody_renews_are_named_and_count_against_no_item(
    read: Callable[[], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The SDK raises no error of its own for them, and a RuntimeError would fail the item."""
    document = {"Version": 1, "AccessKeyId": "a", "SecretAccessKey": "s", "SessionToken": "t"}
    path, config = tmp_path / "credentials.json", tmp_path / "config"
    path.write_text(json.dumps({**document, "Expiration": "2020-01-01T00:00:00+00:00"}))
    config.write_text(f"[default]\ncredential_process = cat {path}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    with pytest.raises(ExpiredCredentials, match=r"have expired .*; renew them"):
        read()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("ProvisionedThroughputExceededException", Throttled),
        ("ThrottlingException", Throttled),
        ("RequestLimitExceeded", Throttled),
        ("SlowDown", Throttled),
        ("AccessDeniedException", AccessDenied),
        ("ValidationException", InvalidRequest),
        ("EntityTooLarge", InvalidRequest),
        ("InternalServerError", ServiceError),
    ],
)
@pytest.mark.parametrize(
    ("make", "method", "read"),
    [
        (dynamo_client, "get_item", lambda it: DynamoRows(it, "t", AwsClock()).get("pk", "sk")),
        (s3_client, "get_object", lambda it: S3Objects(it, "lab").get("key")),
    ],
)
def test_a_throttled_request_is_distinguished_from_other_refusals(
    code: str,
    kind: type[ServiceError],
    make: Callable[[], Any],
    method: str,
    read: Callable[[Any], object],
) -> None:
    client = make()
    stubber = Stubber(client)
    stubber.add_client_error(method, code, "as asked")
    with stubber, pytest.raises(ServiceError, match="as asked") as told:
        read(client)
    assert type(told.value) is kind


@pytest.mark.parametrize("client", [dynamo_client, s3_client])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AWS_ACCESS_KEY_ID", "AKIA", "missing: AWS_SECRET_ACCESS_KEY; credentials are looked for"),
        ("AWS_PROFILE", "my-lab", r"\(my-lab\) could not be found; correct .* AWS_PROFILE"),
        ("AWS_DEFAULT_REGION", "", "Invalid endpoint.*; correct the site's aws section"),
    ],
)
def test_settings_that_the_sdk_cannot_use_are_named_when_a_client_is_made(
    monkeypatch: pytest.MonkeyPatch,
    client: Callable[[], object],
    name: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        client()


SIGNED_EARLIER = "Signature expired: 20261130T100000Z is now earlier than 20261130T110000Z"
SIGNED_LATER = "Signature not yet current: 20261130T120000Z is still later than 20261130T110500Z"


def refusal_of_the_table(answer: Answer) -> ServiceError:
    """The error for a row that is read from a table that answers so."""
    with serving(lambda _: answer) as server, pytest.raises(ServiceError) as told:
        DynamoRows(dynamo_client(session(), server.url), "backfills", AwsClock()).get("pk", "sk")
    return told.value


def test_expired_credentials_are_named_with_what_to_do() -> None:
    code, said = "ExpiredTokenException", "The security token included in the request is expired"
    error = refusal_of_the_table(dynamo_refusal(400, code, said))
    assert type(error) is ExpiredCredentials
    assert error.problem == (
        f"DynamoDB table 'backfills': the AWS credentials have expired ({code}: {said})"
    )
    assert error.fix.startswith("renew them")


@pytest.mark.parametrize("code", ["InvalidSignatureException", "SignatureDoesNotMatch"])
@pytest.mark.parametrize("said", [SIGNED_EARLIER, SIGNED_LATER])
def test_a_signature_of_another_time_is_a_wrong_clock(code: str, said: str) -> None:
    error = refusal_of_the_table(dynamo_refusal(400, code, said))
    assert type(error) is WrongClock
    assert said in error.problem
    assert "NTP" in error.fix


@pytest.mark.parametrize(
    ("hours", "way"), [(1, r"3,[56]\d\d s behind"), (-1, r"3,[56]\d\d s ahead of")]
)
def test_a_wrong_clock_is_told_with_the_difference_and_the_host(hours: int, way: str) -> None:
    date = {"Date": format_datetime(datetime.now(timezone.utc) + timedelta(hours=hours))}
    error = refusal_of_the_table(dynamo_refusal(400, "RequestTimeTooSkewed", "no", date))
    assert re.search(
        f"the clock of '{re.escape(gethostname())}' is {way} the service's", str(error)
    )


def test_a_signature_with_a_wrong_key_is_not_blamed_on_the_clock() -> None:
    said = "The request signature we calculated does not match the signature you provided."
    error = refusal_of_the_table(dynamo_refusal(400, "InvalidSignatureException", said))
    assert type(error) is ServiceError


def test_a_redirect_of_the_table_is_one_line_with_the_address_and_the_setting() -> None:
    to = {"Location": "https://dynamodb.lab.example/"}
    error = refusal_of_the_table(page_of_a_proxy(301, "301 Moved Permanently", to))
    assert type(error) is WrongSetting
    assert str(error) == (
        "DynamoDB table 'backfills': the service redirects to https://dynamodb.lab.example/; "
        "correct aws.dynamodb_endpoint_url"
    )


def test_a_session_of_single_sign_on_that_has_ended_is_expired_credentials() -> None:
    client: Any = dynamo_client(session(), "http://127.0.0.1:1")

    def sign(**_: object) -> None:
        raise UnauthorizedSSOTokenError

    client.meta.events.register("before-call.dynamodb", sign)
    with pytest.raises(ExpiredCredentials, match="aws sso login"):
        DynamoRows(client, "backfills", AwsClock()).get("pk", "sk")

"""Errors of the SDK before any answer name their cause, and count against no task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from botocore.stub import Stubber

from slurm_worker.backends.clock import AwsClock
from slurm_worker.backends.dynamodb import DynamoRows, dynamo_client
from slurm_worker.backends.s3 import S3Objects, s3_client
from slurm_worker.errors import (
    AccessDenied,
    InvalidRequest,
    NoCredentials,
    ServiceError,
    Throttled,
    UserError,
)


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

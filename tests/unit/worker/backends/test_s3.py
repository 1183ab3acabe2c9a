"""What stores answer to a conditional PUT becomes a yes, a no, or an error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from slurm_worker.backends.s3 import S3Objects
from slurm_worker.errors import ServiceError


class Client:
    """Answers a conditional PUT with these codes, in turn; takes any other one."""

    meta = SimpleNamespace(endpoint_url="http://127.0.0.1:1")

    def __init__(self, *codes: str) -> None:
        self.codes = list(codes)
        self.written: list[bytes] = []

    def put_object(self, **request: Any) -> None:
        if self.codes and {"IfMatch", "IfNoneMatch"} & request.keys():
            error = {"Code": self.codes.pop(0), "Message": "no"}
            raise ClientError({"Error": error}, "PutObject")  # type: ignore[typeddict-item]
        self.written.append(request["Body"])


def store(client: Client) -> S3Objects:
    return S3Objects(client, "lab")  # type: ignore[arg-type]  # it has the one verb


@pytest.mark.parametrize("code", ["PreconditionFailed", "412", "NoSuchKey", "404"])
def test_an_object_that_was_changed_or_deleted_is_not_replaced(code: str) -> None:
    client = Client(code)
    assert not store(client).put_if("a", b"x", '"tag"')
    assert client.written == []


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "409"])
def test_conditional_writes_that_collide_are_repeated(code: str) -> None:
    client = Client(code, code)
    assert store(client).put_if("a", b"x", '"tag"')
    assert client.written == [b"x"]


def test_a_store_without_if_match_replaces_the_object() -> None:
    client = Client("NotImplemented")
    assert store(client).put_if("a", b"x", '"tag"')
    assert client.written == [b"x"]


def test_every_other_refusal_is_an_error() -> None:
    with pytest.raises(ServiceError, match="s3://lab/a"):
        store(Client("InternalError")).put_if("a", b"x", '"tag"')

"""The object store on S3: verbs over boto3's client, for one bucket.

Each call is one request, unless it says otherwise. Only this module translates S3's exceptions.
"""

from __future__ import annotations

import base64
import hashlib
import random
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, TypedDict

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import ClientError, FlexibleChecksumError

from slurm_worker.backends.checksums import CHECKSUMS_FIX, Checksums
from slurm_worker.backends.errors import (
    UNANSWERED,
    code_of,
    headers_of,
    is_redirect,
    refused,
    settings_explained,
    status_of,
    text_of,
    unanswered,
    words_of,
)
from slurm_worker.errors import (
    Missing,
    NoCredentials,
    ServiceError,
    UserError,
    WrongClock,
    WrongSetting,
)
from slurm_worker.protocol.ports import ObjectInfo, StoredObject

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CLIENT_CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": 5},
    connect_timeout=3,
    read_timeout=30,
    max_pool_connections=32,
)
_MISSING = {"NoSuchKey", "404", "NotFound"}
_EXISTS = {"PreconditionFailed", "412"}
#: The store does not know ``If-Match`` or ``If-None-Match``.
_UNKNOWN = {"NotImplemented", "501"}
#: Two requests collided, and the store has carried out neither or the other one. Another try of a
#: conditional write gets a 412 or succeeds.
_CONFLICT = {"ConditionalRequestConflict", "OperationAborted", "Conflict", "409"}
_CONFLICT_TRIES = 5
_CONFLICT_WAIT_S = 0.1
#: A refusal of HEAD has no text that says why.
_WORDLESS = {"400", "403"}
_FORBIDDEN = 403
#: As stores word that they don't know the checksums of today's SDKs: in a header, or behind the
#: bytes in a trailer, for which the request has no Content-Length.
_OF_CHECKSUMS = re.compile(
    r"checksum|x-amz-trailer|STREAMING-|aws-chunked|content-?sha-?256|content-md5|"
    r"transfer-encoding|MissingContentLength",
    re.IGNORECASE,
)
_DAMAGED = "BadDigest"
_REGION = re.compile(r"[a-z0-9-]+")
#: Refusals of a request that was signed for another region than the bucket's.
_OTHER_REGION = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_ENDPOINT = "aws.s3_endpoint_url"
_ENDPOINT_TOO = f", and name an endpoint of this region in {_ENDPOINT}"
#: Objects that one request may delete.
_MOST_DELETED = 1000


class _Condition(TypedDict, total=False):
    """When a PUT may be applied."""

    IfNoneMatch: str
    IfMatch: str


class S3Objects:
    """`ports.ObjectStore` on one S3 bucket."""

    def __init__(self, client: S3Client, bucket: str) -> None:
        self.client = client
        self.bucket = bucket

    def verify(self) -> None:
        """See `ports.ObjectStore.verify`."""
        with self._errors(""):
            try:
                self.client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if code_of(error) in _MISSING:
                    raise self._no_bucket() from error
                if code_of(error) not in _WORDLESS:
                    raise
                self._ask_why()

    def _ask_why(self) -> None:
        """Make a request that is refused with a reason, because the reply to HEAD has none."""
        try:
            self.client.list_objects_v2(Bucket=self.bucket, MaxKeys=1)
        except ClientError as error:
            named = isinstance(refused("", error), (NoCredentials, WrongClock))
            if named or status_of(error) != _FORBIDDEN:
                raise
            raise UserError(
                f"storage.prefix: no access to bucket {self.bucket!r} ({words_of(error)})",
                "check the name and the credentials",
            ) from error

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        """See `ports.ObjectStore.get`."""
        end = "" if length is None else start + length - 1
        with suppress(Missing), self._errors(key):
            if start == 0 and length is None:
                return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            return self.client.get_object(
                Bucket=self.bucket, Key=key, Range=f"bytes={start}-{end}"
            )["Body"].read()
        return None

    def put(self, key: str, body: bytes) -> None:
        """See `ports.ObjectStore.put`."""
        with self._errors(key):
            self.client.put_object(Bucket=self.bucket, Key=key, Body=body)

    def put_new(self, key: str, body: bytes) -> bool:
        """See `ports.ObjectStore.put_new`."""
        return self._put_where(key, body, {"IfNoneMatch": "*"}, _EXISTS)

    def read(self, key: str) -> StoredObject | None:
        """See `ports.ObjectStore.read`."""
        with suppress(Missing), self._errors(key):
            found = self.client.get_object(Bucket=self.bucket, Key=key)
            modified = found["LastModified"].timestamp()
            return StoredObject(found["Body"].read(), found["ETag"], modified)
        return None

    def put_if(self, key: str, body: bytes, tag: str) -> bool:
        """See `ports.ObjectStore.put_if`."""
        return self._put_where(key, body, {"IfMatch": tag}, _EXISTS | _MISSING)

    def list(self, prefix: str) -> Iterator[str]:
        """See `ports.ObjectStore.list`."""
        for entry in self.entries(prefix):
            yield entry.key

    def entries(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ports.ObjectStore.entries`."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix
        )
        with self._errors(prefix):
            for page in pages:
                for entry in page.get("Contents", []):
                    modified = entry["LastModified"].timestamp()
                    yield ObjectInfo(entry["Key"], entry["Size"], modified, entry.get("ETag", ""))

    def delete(self, key: str) -> None:
        """See `ports.ObjectStore.delete`."""
        with self._errors(key):
            self.client.delete_object(Bucket=self.bucket, Key=key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """See `ports.ObjectStore.delete_many`."""
        left = iter(keys)
        while batch := list(islice(left, _MOST_DELETED)):
            with self._errors(batch[0]):
                reply = self.client.delete_objects(
                    Bucket=self.bucket,
                    Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True},
                )
            for error in reply.get("Errors", []):
                raise ServiceError(
                    f"s3://{self.bucket}/{error.get('Key')}: can't be deleted "
                    f"({error.get('Code')}: {error.get('Message')})"
                )

    def size(self, key: str) -> int | None:
        """See `ports.ObjectStore.size`."""
        with suppress(Missing), self._errors(key):
            try:
                return self.client.head_object(Bucket=self.bucket, Key=key)["ContentLength"]
            except ClientError as error:
                if code_of(error) in _WORDLESS:
                    # This request is refused with a text.
                    self.client.get_object(Bucket=self.bucket, Key=key, Range="bytes=0-0")
                raise
        return None

    def upload(self, key: str, path: str) -> None:
        """See `ports.ObjectStore.upload`; several requests for files over 8 MB."""
        with self._errors(key):
            self.client.upload_file(path, self.bucket, key)

    def download(self, key: str, path: str) -> None:
        """See `ports.ObjectStore.download`."""
        with self._errors(key):
            self.client.download_file(self.bucket, key, path)

    def copy(self, source: str, key: str) -> None:
        """See `ports.ObjectStore.copy`; several requests for objects over 8 MB."""
        with self._errors(source):
            self.client.copy({"Bucket": self.bucket, "Key": source}, self.bucket, key)

    def _put_where(self, key: str, body: bytes, condition: _Condition, refusals: set[str]) -> bool:
        with self._errors(key):
            try:
                self.client.put_object(Bucket=self.bucket, Key=key, Body=body, **condition)
            except ClientError as error:
                if code_of(error) in refusals:
                    return False
                if code_of(error) not in _UNKNOWN or self._refuses_checksums(error):
                    raise
                # As in a store that ignores conditions: callers detect it, and use the table.
                self.client.put_object(Bucket=self.bucket, Key=key, Body=body)
        return True

    def _no_bucket(self) -> UserError:
        return UserError(
            f"storage.prefix: there is no bucket {self.bucket!r}", "create it or correct the name"
        )

    def _elsewhere(self, error: ClientError) -> WrongSetting:
        """The error for a bucket that the endpoint does not serve."""
        endpoint, region = self.client.meta.endpoint_url, self.client.meta.region_name
        if place := _region_in(error):
            also = "" if is_aws(self.client) else _ENDPOINT_TOO
            return WrongSetting(
                f"bucket {self.bucket!r} is in region {place}, and {endpoint} with "
                f"region {region} does not serve it",
                f"set aws.region: {place} in the site file{also}",
            )
        named = error.response.get("Error", {}).get("Endpoint")
        to = headers_of(error).get("location") or named or "another address"
        return WrongSetting(
            f"{endpoint} with region {region} does not serve bucket "
            f"{self.bucket!r}: it redirects to {to}",
            f"set aws.region to the bucket's region, and correct {_ENDPOINT}",
        )

    def _refuses_checksums(self, error: ClientError) -> bool:
        """Whether the store can't do with the checksums that this client sends.

        A digest that differs is another matter: the bytes were damaged on their way.
        """
        if is_aws(self.client) or not _sends_checksums(self.client) or code_of(error) == _DAMAGED:
            return False
        return _OF_CHECKSUMS.search(f"{code_of(error)} {text_of(error)}") is not None

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        where = f"s3://{self.bucket}/{key}"
        try:
            yield
        except ClientError as error:
            if code_of(error) == "NoSuchBucket":
                raise self._no_bucket() from error
            if code_of(error) in _MISSING:
                raise Missing(f"{where}: there is no such object") from error
            if is_redirect(error) or _region_in(error):
                raise self._elsewhere(error) from error
            if self._refuses_checksums(error):
                found = f"{where}: the store refuses the SDK's checksums ({error})"
                raise WrongSetting(found, CHECKSUMS_FIX) from error
            raise refused(where, error, _ENDPOINT) from error
        except FlexibleChecksumError as error:
            raise ServiceError(
                f"{where}: the bytes do not have the checksum that came with them ({error})",
                f"try again; if this is so for each object, {CHECKSUMS_FIX}",
            ) from error
        except (*UNANSWERED, Boto3Error) as error:
            raise unanswered(where, error, f"{_ENDPOINT}, the region and the network") from error


def s3_client(
    session: boto3.Session | None = None,
    endpoint_url: str | None = None,
    checksums: Checksums | None = None,
) -> S3Client:
    """A client with short timeouts; path-style addresses where the endpoint is not AWS's.

    Without `checksums`, the SDK's variables and profile decide.

    Raises:
        UserError: if the SDK's settings are wrong.
    """
    config = CLIENT_CONFIG
    if checksums is not None:
        config = config.merge(
            Config(request_checksum_calculation=checksums, response_checksum_validation=checksums)
        )
    with settings_explained():
        chosen = session or boto3.Session()
        client: S3Client = chosen.client("s3", endpoint_url=endpoint_url, config=config)
        if not is_aws(client):
            # Other stores seldom support bucket names in the host name.
            config = config.merge(Config(s3={"addressing_style": "path"}))
            client = chosen.client("s3", endpoint_url=endpoint_url, config=config)
    events: Any = client.meta.events
    events.register_first("needs-retry.s3", _stop_redirects)
    events.register("needs-retry.s3", _wait_after_conflict)
    if not _sends_checksums(client):
        events.register("before-call.s3", _digest_instead)
    return client


def is_aws(client: S3Client) -> bool:
    """Whether a client's store is AWS, not another store with the S3 API."""
    return "amazonaws.com" in client.meta.endpoint_url


def _sends_checksums(client: S3Client) -> bool:
    """Whether a client sends checksums that S3 does not require."""
    config: Any = client.meta.config
    return bool(config.request_checksum_calculation != "when_required")


def _digest_instead(params: dict[str, Any], context: dict[str, Any], **_: object) -> None:
    """Send a Content-MD5 where S3 requires a checksum: stores know it that know no other."""
    if context.get("checksum", {}).pop("request_algorithm", None) and params["body"]:
        digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
        params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


def _stop_redirects(
    response: tuple[Any, dict[str, Any]] | None, operation: Any, **_: object
) -> None:
    """Refuse a redirect of a HEAD of a bucket that names no region.

    The SDK makes this request where another one was redirected, to learn the region. It would do
    the same again for this answer, forever.

    Raises:
        ClientError: the answer itself.
    """
    if response is not None and operation.name == "HeadBucket":
        error = ClientError(response[1], operation.name)  # type: ignore[arg-type]  # as the SDK does
        if is_redirect(error) and not _region_in(error):
            raise error


def _wait_after_conflict(
    response: tuple[Any, dict[str, Any]] | None, attempts: int, **_: object
) -> float | None:
    """Seconds until a request that collided with another one is repeated; None if it is not."""
    code = "" if response is None else str(response[1].get("Error", {}).get("Code", ""))
    if code not in _CONFLICT or attempts >= _CONFLICT_TRIES:
        return None
    return random.uniform(0, _CONFLICT_WAIT_S * 2**attempts)


def _region_in(error: ClientError) -> str:
    """The region in which a refusal says that the bucket is; empty if it says none."""
    if not is_redirect(error) and code_of(error) not in _OTHER_REGION:
        return ""
    found = headers_of(error).get("x-amz-bucket-region") or error.response["Error"].get("Region")
    return found if isinstance(found, str) and _REGION.fullmatch(found) else ""

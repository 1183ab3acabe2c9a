"""The object store on S3: verbs over boto3's client, for one bucket.

Each call is one request, unless it says otherwise. Only this module translates S3's exceptions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, TypedDict

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from slurm_worker.backends.errors import code_of, refused, settings_explained, unanswered
from slurm_worker.errors import Missing, ServiceError, UserError
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
#: The store does not know ``If-Match``.
_UNKNOWN = {"NotImplemented", "501"}
#: Two conditional writes collided; another try gets a 412 or succeeds.
_CONFLICT = {"ConditionalRequestConflict", "409"}
_CONFLICT_TRIES = 5
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
                if code_of(error) == "403":
                    raise UserError(
                        f"storage.prefix: no access to bucket {self.bucket!r}",
                        "check the name and the credentials",
                    ) from error
                raise

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
                    yield ObjectInfo(entry["Key"], entry["Size"], modified)

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
            return self.client.head_object(Bucket=self.bucket, Key=key)["ContentLength"]
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
        for attempt in range(_CONFLICT_TRIES):
            with self._errors(key):
                try:
                    self.client.put_object(Bucket=self.bucket, Key=key, Body=body, **condition)
                    return True
                except ClientError as error:
                    if code_of(error) in refusals:
                        return False
                    if code_of(error) in _UNKNOWN and "IfMatch" in condition:
                        self.client.put_object(Bucket=self.bucket, Key=key, Body=body)
                        return True
                    if code_of(error) not in _CONFLICT or attempt + 1 == _CONFLICT_TRIES:
                        raise
        raise AssertionError("unreachable: the last try returns or raises")

    def _no_bucket(self) -> UserError:
        return UserError(
            f"storage.prefix: there is no bucket {self.bucket!r}", "create it or correct the name"
        )

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
            raise refused(where, error) from error
        except (BotoCoreError, Boto3Error) as error:
            raise unanswered(
                where, error, "aws.s3_endpoint_url, the region and the network"
            ) from error


def s3_client(session: boto3.Session | None = None, endpoint_url: str | None = None) -> S3Client:
    """A client with short timeouts; path-style addresses where the endpoint is not AWS's.

    Raises:
        UserError: if the SDK's settings are wrong.
    """
    with settings_explained():
        chosen = session or boto3.Session()
        client: S3Client = chosen.client("s3", endpoint_url=endpoint_url, config=CLIENT_CONFIG)
        if not is_aws(client):
            # Other stores seldom support bucket names in the host name.
            config = CLIENT_CONFIG.merge(Config(s3={"addressing_style": "path"}))
            client = chosen.client("s3", endpoint_url=endpoint_url, config=config)
    return client


def is_aws(client: S3Client) -> bool:
    """Whether a client's store is AWS, not another store with the S3 API."""
    return "amazonaws.com" in client.meta.endpoint_url

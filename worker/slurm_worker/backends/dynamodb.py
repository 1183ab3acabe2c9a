"""The table on DynamoDB: four verbs over boto3's client.

One on-demand table with string keys ``pk`` and ``sk``, no index. Every write is one request
and, as rows stay under 1 KB, one write unit. Only this module translates DynamoDB's exceptions.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

import boto3
from boto3.dynamodb.types import TypeSerializer
from botocore.config import Config
from botocore.exceptions import ClientError

from slurm_worker.backends.clock import AwsClock, boot_time
from slurm_worker.backends.errors import (
    UNANSWERED,
    code_of,
    refused,
    settings_explained,
    unanswered,
)
from slurm_worker.errors import UserError
from slurm_worker.protocol.ports import Applied, Refused, Row, Statement, Value

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

#: A read timeout of a minute, the SDK's default, would eat half a lease.
CLIENT_CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": 5},
    connect_timeout=3,
    read_timeout=5,
    max_pool_connections=32,
)

_ENDPOINT = "aws.dynamodb_endpoint_url"
_NAMES = re.compile(r"#(\w+)")
_serialize = TypeSerializer().serialize
#: The reply's key of the items that are taken out before the SDK reads them.
_TAKEN = "TakenItems"


class DynamoRows:
    """`ports.Rows` on a DynamoDB table; the `clock` observes each reply's ``Date`` header."""

    def __init__(self, client: DynamoDBClient, table: str, clock: AwsClock) -> None:
        self._client = client
        self._table = table
        self._clock = clock
        #: When each thread has sent its request: several share the client.
        self._sent = threading.local()
        client.meta.events.register("before-send.dynamodb", self._record_sent)
        # Once per client, however many use it: a second handler would find no items to take.
        client.meta.events.register("before-parse.dynamodb.Query", _take_items, unique_id=_TAKEN)

    def get(self, pk: str, sk: str, *, consistent: bool = True) -> Row | None:
        """See `ports.Rows.get`; half a read unit, or one when consistent."""
        with self._errors():
            reply = self._client.get_item(
                TableName=self._table, Key=_key(pk, sk), ConsistentRead=consistent
            )
        self._observe(reply)
        return _row(reply["Item"]) if "Item" in reply else None

    def put_new(self, row: Row) -> Applied | Refused:
        """See `ports.Rows.put_new`; one write unit, also when refused."""
        item = {name: _serialize(value) for name, value in row.items()}
        missing = {"Item": item, "ConditionExpression": "attribute_not_exists(pk)"}
        written = self._write(self._client.put_item, str(row["pk"]), str(row["sk"]), missing)
        return written if isinstance(written, Refused) else Applied(row)

    def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
        """See `ports.Rows.update`; one write unit, also when refused."""
        text = f"{statement.update} {statement.condition}"
        names = {f"#{name}": name for name in _NAMES.findall(text)}
        request: dict[str, Any] = {
            "Key": _key(pk, sk),
            "UpdateExpression": statement.update,
            "ConditionExpression": statement.condition,
            "ExpressionAttributeNames": names,
            "ReturnValues": "ALL_NEW",
        }
        if statement.values:
            request["ExpressionAttributeValues"] = {
                f":{name}": _serialize(value) for name, value in statement.values.items()
            }
        written = self._write(self._client.update_item, pk, sk, request)
        return written if isinstance(written, Refused) else Applied(_row(written["Attributes"]))

    def query(
        self,
        pk: str,
        *,
        after: str = "",
        limit: int | None = None,
        consistent: bool = False,
        backwards: bool = False,
    ) -> Iterator[Row]:
        """See `ports.Rows.query`; a read unit per 8 KB, or per 4 KB when consistent."""
        request: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk AND sk > :sk",
            # An empty string is not allowed as a key; a space sorts before every sort key.
            "ExpressionAttributeValues": {":pk": _serialize(pk), ":sk": _serialize(after or " ")},
            "ConsistentRead": consistent,
            "ScanIndexForward": not backwards,
        }
        left = limit
        while True:
            if left is not None:
                request["Limit"] = left
            with self._errors():
                reply = self._client.query(**request)
            self._observe(reply)
            items = cast("list[dict[str, Any]]", cast("Any", reply)[_TAKEN])
            for item in items:
                yield _row(item)
            if left is not None:
                left -= len(items)
            if "LastEvaluatedKey" not in reply or left == 0:
                return
            request["ExclusiveStartKey"] = reply["LastEvaluatedKey"]

    def delete(self, pk: str, sk: str) -> None:
        """See `ports.Rows.delete`; one write unit."""
        with self._errors():
            self._client.delete_item(TableName=self._table, Key=_key(pk, sk))

    def _write(
        self, send: Callable[..., Mapping[str, Any]], pk: str, sk: str, request: Mapping[str, Any]
    ) -> Mapping[str, Any] | Refused:
        with self._errors():
            try:
                reply = send(
                    TableName=self._table, ReturnValuesOnConditionCheckFailure="ALL_OLD", **request
                )
            except self._client.exceptions.ConditionalCheckFailedException as error:
                item = cast("dict[str, Any]", error.response).get("Item")
                # Some emulators ignore ReturnValuesOnConditionCheckFailure; read the row instead.
                return Refused(self.get(pk, sk) if item is None else _row(item))
        self._observe(reply)
        return reply

    def _record_sent(self, **_: object) -> None:
        self._sent.at = boot_time()

    def _observe(self, reply: Mapping[str, Any]) -> None:
        header = reply["ResponseMetadata"]["HTTPHeaders"].get("date")
        if header:
            self._clock.observe(header, self._sent.at, boot_time())

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            if code_of(error) == "ResourceNotFoundException":
                raise UserError(
                    f"storage.table: there is no DynamoDB table {self._table!r}",
                    "create it with slurmctl bootstrap, or correct the name",
                ) from error
            raise refused(f"DynamoDB table {self._table!r}", error, _ENDPOINT) from error
        except UNANSWERED as error:
            raise unanswered(
                f"DynamoDB table {self._table!r}",
                error,
                f"{_ENDPOINT}, the region and the network",
            ) from error


def dynamo_client(
    session: boto3.Session | None = None, endpoint_url: str | None = None
) -> DynamoDBClient:
    """A client with short timeouts; about 200 ms, as the SDK loads its service model.

    Raises:
        UserError: if the SDK's settings are wrong.
    """
    with settings_explained():
        client: DynamoDBClient = (session or boto3.Session()).client(
            "dynamodb", endpoint_url=endpoint_url, config=CLIENT_CONFIG
        )
    return client


def _key(pk: str, sk: str) -> dict[str, Any]:
    return {"pk": {"S": pk}, "sk": {"S": sk}}


def _take_items(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object
) -> None:
    """Take a Query's items out of its reply, before the SDK checks each value against its model.

    The check takes most of the time of a page, and our rows do not need it.
    """
    if response_dict["status_code"] == 200:
        reply = json.loads(response_dict["body"])
        customized_response_dict[_TAKEN] = reply.pop("Items")
        response_dict["body"] = json.dumps(reply).encode()


def _row(item: Mapping[str, Mapping[str, Any]]) -> Row:
    return {name: _value(typed) for name, typed in item.items()}


def _value(typed: Mapping[str, Any]) -> Value:
    """A value in DynamoDB's typed form, ``{"N": "7"}``; only the types that our rows have."""
    for kind, value in typed.items():
        if kind in ("S", "BOOL"):
            return cast("Value", value)
        if kind == "N":
            return int(Decimal(value)) if not value.isdecimal() else int(value)
        if kind == "M":
            return _row(value)
        if kind == "L":
            return [_value(item) for item in value]
    return None

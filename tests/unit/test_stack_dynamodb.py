"""The stack's DynamoDB answers queries as moto does, only sooner."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from moto import mock_aws
from moto.dynamodb import responses
from moto.dynamodb.models.dynamo_type import LimitedSizeDict
from moto.dynamodb.models.table import Table
from moto.dynamodb.responses import DynamoHandler

from tests.stack.aws import create_table
from tests.stack.dynamodb import call_action, query, serialized, set_limited, to_dict


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    for name in ("AWS_ENDPOINT_URL_DYNAMODB", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        client = boto3.client("dynamodb", region_name="us-east-1")
        create_table(client, "t")
        for number in range(400):
            pad = "x" * (6000 if number % 2 else 10)
            client.put_item(
                TableName="t",
                Item={
                    "pk": {"S": f"p{number % 3}"},
                    "sk": {"S": f"{number * 7919 % 1000:05}"},
                    "n": {"N": str(number)},
                    "pad": {"S": pad},
                    "odd": {"BOOL": bool(number % 2)},
                    "none": {"NULL": True},
                    "map": {"M": {"a": {"L": [{"N": "1"}, {"S": "b"}]}}},
                    "bytes": {"B": b"\x00\xff"},
                    "set": {"SS": ["a", "b"]},
                },
            )
        yield client


def pages(client: Any, request: dict[str, Any]) -> list[Any]:
    """Rows and counts of the first pages."""
    found: list[Any] = []
    while len(found) < 5:
        reply = client.query(TableName="t", **request)
        last = reply.get("LastEvaluatedKey")
        found.append((reply["Items"], last, reply["Count"], reply["ScannedCount"]))
        if last is None:
            break
        request = {**request, "ExclusiveStartKey": last}
    return found


def a_query(choose: random.Random) -> dict[str, Any]:
    after = choose.choice([" ", f"{choose.randrange(1000):05}"])
    values = {":pk": {"S": f"p{choose.randrange(4)}"}}
    request: dict[str, Any] = {
        "KeyConditionExpression": "pk = :pk",
        "ExpressionAttributeValues": values,
        "ScanIndexForward": choose.random() < 0.7,
    }
    if choose.random() < 0.8:
        request["KeyConditionExpression"] += " AND sk > :sk"
        values[":sk"] = {"S": after}
    if choose.random() < 0.7:
        request["Limit"] = choose.choice([1, 3, 20, 100])
    if choose.random() < 0.2:
        request["FilterExpression"] = "n > :n"
        values[":n"] = {"N": "100"}
    return request


def test_pages_are_those_of_moto(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = random.Random(1)
    requests = [a_query(choose) for _ in range(60)]
    expected = [pages(client, each) for each in requests]
    assert any(len(each) > 1 for each in expected)
    monkeypatch.setattr(Table, "query", query)
    monkeypatch.setattr(DynamoHandler, "serialized", serialized)
    monkeypatch.setattr(responses, "dynamo_to_dict", to_dict)
    assert [pages(client, each) for each in requests] == expected


def test_other_replies_are_those_of_moto(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    key = {"pk": {"S": "p1"}, "sk": {"S": "00919"}}

    def replies() -> list[Any]:
        update = {
            "TableName": "t",
            "Key": key,
            "UpdateExpression": "SET n = :n",
            "ConditionExpression": "n <> :n",
            "ExpressionAttributeValues": {":n": {"N": "-1"}},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
            "ReturnValues": "ALL_NEW",
        }
        found = [client.get_item(TableName="t", Key=key), client.update_item(**update)]
        with pytest.raises(client.exceptions.ConditionalCheckFailedException) as refused:
            client.update_item(**update)
        update["ExpressionAttributeValues"] = {":n": {"N": "1"}}
        found += [refused.value.response, client.update_item(**update)]
        found.append(client.describe_table(TableName="t"))
        for each in found:
            del each["ResponseMetadata"]
        return found

    client.update_item(
        TableName="t",
        Key=key,
        UpdateExpression="SET n = :n",
        ExpressionAttributeValues={":n": {"N": "1"}},
    )
    expected = replies()
    monkeypatch.setattr(DynamoHandler, "serialized", serialized)
    monkeypatch.setattr(responses, "dynamo_to_dict", to_dict)
    assert replies() == expected


@pytest.mark.parametrize("quick", [False, True])
def test_a_row_is_no_larger_than_dynamodb_allows(
    client: Any, monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    if quick:
        monkeypatch.setattr(LimitedSizeDict, "__setitem__", set_limited)
    row = {"pk": {"S": "p"}, "sk": {"S": "s"}, "n": {"N": "1"}}
    client.put_item(TableName="t", Item={**row, "large": {"S": "x" * 300_000}})
    with pytest.raises(client.exceptions.ClientError, match="maximum allowed size"):
        client.put_item(TableName="t", Item={**row, "large": {"S": "x" * 410_000}})


def test_of_many_who_ask_at_the_same_time_one_is_granted(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DynamoHandler, "call_action", call_action)
    switches = sys.getswitchinterval()

    def claim(number: int) -> bool:
        try:
            client.update_item(
                TableName="t",
                Key={"pk": {"S": "claims"}, "sk": {"S": str(number // 8)}},
                UpdateExpression="SET #taken = :yes, #n = if_not_exists(#n, :zero) + :one",
                ConditionExpression="attribute_not_exists(#taken)",
                ExpressionAttributeNames={"#taken": "taken", "#n": "n"},
                ExpressionAttributeValues={
                    ":yes": {"BOOL": True},
                    ":zero": {"N": "0"},
                    ":one": {"N": "1"},
                },
            )
        except client.exceptions.ConditionalCheckFailedException:
            return False
        return True

    # Threads that take turns at almost every step meet in the gap, were there one.
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            granted = sum(pool.map(claim, range(8 * 20)))
    finally:
        sys.setswitchinterval(switches)
    assert granted == 20
    rows = client.query(
        TableName="t",
        KeyConditionExpression="pk = :pk",
        ExpressionAttributeValues={":pk": {"S": "claims"}},
    )["Items"]
    assert {row["n"]["N"] for row in rows} == {"1"}

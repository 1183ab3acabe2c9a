"""moto's server, made quick enough for tables of a hundred thousand rows.

moto looks at every row of a table for each page of a Query, and spends about two milliseconds
on each row that it returns. What a reply holds is still moto's to say: a Query is handed the
rows of its partition past the start, as many as a page may have, instead of all there are; and
a reply that is plain JSON already is not walked through once more.

moto's server has a thread per request and checks a condition before it changes the row, with
nothing to keep two of them apart; DynamoDB is atomic. So here one request is served at a time.
"""

from __future__ import annotations

import copy
import gc
import heapq
import json
import sys
import threading
from typing import Any

from moto.core.responses import ActionResult
from moto.dynamodb.comparisons import OpDefault
from moto.dynamodb.models.table import Table
from moto.dynamodb.responses import DynamoHandler
from moto.server import main

_whole_query = Table.query
_serialized = DynamoHandler.serialized
_call_action = DynamoHandler.call_action
_one_at_a_time = threading.RLock()


def query(
    table: Table,
    hash_key: Any,
    comparison: str | None,
    values: list[Any],
    limit: int | None,
    start: dict[str, Any] | None,
    forwards: bool | None,
    *rest: Any,
    **more: Any,
) -> Any:
    """`Table.query`, in the order in which moto's backend gives its arguments."""
    _, index_name, _, filter_expression = rest
    if index_name or table.range_key_attr is None:
        return _whole_query(
            table, hash_key, comparison, values, limit, start, forwards, *rest, **more
        )
    # Other threads may write meanwhile; this copy is made in one step.
    found = list(dict(table.items.get(hash_key, {})).items())
    if comparison == ">":
        found = [each for each in found if each[0].value > values[0].value]
    if start:
        last = start[table.range_key_attr]["S"]
        if forwards is False:
            found = [each for each in found if each[0].value < last]
        else:
            found = [each for each in found if each[0].value > last]
    unfiltered = filter_expression is None or isinstance(filter_expression, OpDefault)
    if limit and unfiltered and comparison in (None, ">"):
        pick = heapq.nlargest if forwards is False else heapq.nsmallest
        # One more tells moto that there is another page.
        found = pick(limit + 1, found, key=lambda each: each[0].value)
    partition = copy.copy(table)
    partition.items = {hash_key: dict(found)}
    return _whole_query(
        partition, hash_key, comparison, values, limit, start, forwards, *rest, **more
    )


def serialized(handler: DynamoHandler, action_result: ActionResult) -> Any:
    """`DynamoHandler.serialized`, for what is JSON as it stands; else moto's."""
    if not isinstance(action_result.result, dict):
        return _serialized(handler, action_result)
    try:
        body = json.dumps(action_result.result)
    except TypeError:
        return _serialized(handler, action_result)
    headers = {"Content-Type": "application/x-amz-json-1.0", **handler.response_headers}
    return 200, headers, body


def call_action(handler: DynamoHandler) -> Any:
    """`DynamoHandler.call_action`, alone."""
    with _one_at_a_time:
        return _call_action(handler)


if __name__ == "__main__":
    Table.query = query
    DynamoHandler.serialized = serialized
    DynamoHandler.call_action = call_action
    # With millions of objects in its tables, each full collection takes seconds.
    gc.set_threshold(100_000, 50, 1_000)
    main(sys.argv[1:])

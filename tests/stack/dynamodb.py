"""moto's server, made quick enough for tables of a hundred thousand rows.

moto reads every row of a table for each page of a Query, and spends about two milliseconds on each
row that it returns. This module makes four things faster:

- a Query by the table's own key takes its page from the rows past the start;
- values are converted to JSON without trying other types first;
- a reply that is already plain JSON is not traversed again;
- the size of a row is computed again only when a large value is set, not for each value.

The form of a reply is still that of moto.

moto's server has a thread per request, and checks a condition before it changes the row without a
lock. DynamoDB is atomic, so here one request is served at a time.
"""

from __future__ import annotations

import gc
import heapq
import json
import sys
import threading
from typing import Any

from moto.core.responses import ActionResult
from moto.dynamodb import responses
from moto.dynamodb.comparisons import OpDefault
from moto.dynamodb.models.dynamo_type import DynamoType, Item, LimitedSizeDict
from moto.dynamodb.models.table import RESULT_SIZE_LIMIT, Table
from moto.dynamodb.responses import DynamoHandler
from moto.server import main

_whole_query = Table.query
_serialized = DynamoHandler.serialized
_call_action = DynamoHandler.call_action
_to_dict = responses.dynamo_to_dict
_set_limited = LimitedSizeDict.__setitem__
_one_at_a_time = threading.RLock()
_PLAIN = ("S", "N", "BOOL", "NULL")
#: Characters of a value below which a row's size is not looked at: no row has so many values
#: that they come to DynamoDB's 400 KB.
_SMALL = 1_000


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
    projection, index_name, _, filter_expression = rest
    unfiltered = filter_expression is None or isinstance(filter_expression, OpDefault)
    plain = table.range_key_attr is not None and comparison in (None, ">")
    if index_name or projection or not unfiltered or not plain:
        return _whole_query(
            table, hash_key, comparison, values, limit, start, forwards, *rest, **more
        )
    found = list(table.items.get(hash_key, {}).items())
    if comparison == ">":
        found = [each for each in found if each[0].value > values[0].value]
    backwards = forwards is False
    if start:
        last = start[table.range_key_attr]["S"]
        found = [
            each for each in found if (each[0].value < last if backwards else each[0].value > last)
        ]
    if limit:
        pick = heapq.nlargest if backwards else heapq.nsmallest
        # One more row shows that there is another page.
        found = pick(limit + 1, found, key=lambda each: each[0].value)
    else:
        found.sort(key=lambda each: each[0].value, reverse=backwards)
    page: list[Item] = []
    size = 0
    for _, item in found:
        size += item.size()
        if page and (len(page) == limit or size > RESULT_SIZE_LIMIT):
            return page, len(page), table._get_last_evaluated_key(page[-1], None)
        page.append(item)
    return page, len(page), None


def to_dict(value: Any) -> Any:
    """`dynamo_to_dict`, with the usual kinds of values first."""
    if type(value) is DynamoType:
        if value.type in _PLAIN:
            return {value.type: value.value}
        if value.type in ("M", "L"):
            return {value.type: to_dict(value.value)}
        return _to_dict(value)
    if isinstance(value, dict):
        return {name: to_dict(each) for name, each in value.items()}
    if isinstance(value, list):
        return [to_dict(each) for each in value]
    return _to_dict(value)


def set_limited(row: LimitedSizeDict, name: str, value: Any) -> None:
    """`LimitedSizeDict.__setitem__`, which adds up the whole row for each value."""
    scalar = type(value) is DynamoType and value.type in _PLAIN
    if scalar and (value.type == "N" or len(str(value.value)) < _SMALL):
        dict.__setitem__(row, name, value)
    else:
        _set_limited(row, name, value)


def serialized(handler: DynamoHandler, action_result: ActionResult) -> Any:
    """`DynamoHandler.serialized` for replies that are already JSON; otherwise moto's own."""
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


def install() -> None:
    """Have moto use what stands here, in this process: it offers no other way."""
    responses.dynamo_to_dict = to_dict
    # mypy sees no assignment to a method as right. Each is a method of moto's that has no setting:
    # it would add up a row's size for each of its values,
    LimitedSizeDict.__setitem__ = set_limited  # type: ignore[method-assign]  # sizes seldom
    # walk every row of the table for a page,
    Table.query = query  # type: ignore[method-assign]  # rows of the page alone
    # walk a reply that is JSON already,
    DynamoHandler.serialized = serialized  # type: ignore[method-assign]  # JSON unchanged
    # and serve two requests at a time, of which both see the row before either's change.
    DynamoHandler.call_action = call_action  # type: ignore[method-assign]  # one at a time


if __name__ == "__main__":
    install()
    # With millions of objects in its tables, each full collection takes seconds.
    gc.set_threshold(100_000, 50, 1_000)
    main(sys.argv[1:])

"""moto's server, with a Query that reads a range of one partition instead of every row.

moto looks at all rows of a table for each page, and answers take seconds where a table has
tens of thousands. What a page is, is still moto's to say: it is handed the rows of the
partition past the start, as many as the page may have, instead of all there are.
"""

from __future__ import annotations

import copy
import heapq
import sys
from typing import Any

from moto.dynamodb.models.table import Table
from moto.server import main

_whole_query = Table.query


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
    if comparison == "GT":
        found = [each for each in found if each[0].cast_value > values[0].cast_value]
    if start:
        last = start[table.range_key_attr]["S"]
        if forwards is False:
            found = [each for each in found if each[0].cast_value < last]
        else:
            found = [each for each in found if each[0].cast_value > last]
    if limit and filter_expression is None and comparison in (None, "GT"):
        pick = heapq.nlargest if forwards is False else heapq.nsmallest
        # One more tells moto that there is another page.
        found = pick(limit + 1, found, key=lambda each: each[0].cast_value)
    partition = copy.copy(table)
    partition.items = {hash_key: dict(found)}
    return _whole_query(
        partition, hash_key, comparison, values, limit, start, forwards, *rest, **more
    )


if __name__ == "__main__":
    Table.query = query
    main(sys.argv[1:])

"""Tables become row groups of about the size that was asked for, in their order."""

from __future__ import annotations

import itertools

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from slurm_worker.aggregate.dataset.version import row_groups


def tables(sizes: list[int]) -> list[pa.Table]:
    """Tables of so many rows, numbered through."""
    numbers = itertools.count()
    return [pa.table({"n": list(itertools.islice(numbers, size))}) for size in sizes]


@given(st.lists(st.integers(1, 5), max_size=600), st.integers(1, 400))
def test_no_row_is_lost_doubled_or_out_of_its_order(sizes: list[int], size: int) -> None:
    groups = list(row_groups(tables(sizes), size))
    rows = [n for group in groups for n in group["n"].to_pylist()]
    assert rows == list(range(sum(sizes)))
    assert all(size <= group.num_rows < size + 5 for group in groups[:-1])


def test_thousands_of_tiny_tables_do_not_wait_as_such() -> None:
    (group,) = row_groups(tables([1] * 3_000), 100_000)
    assert group.num_rows == 3_000
    assert group["n"].num_chunks < 200

"""Tables become row groups of about the configured size, in their order."""

from __future__ import annotations

import itertools

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from slurm_worker.aggregate.dataset.parquet_file import row_groups


def tables(sizes: list[int]) -> list[pa.Table]:
    """Tables with these numbers of rows; all rows are numbered in order."""
    numbers = itertools.count()
    return [pa.table({"n": list(itertools.islice(numbers, size))}) for size in sizes]


@given(st.lists(st.integers(1, 5), max_size=600), st.integers(1, 400))
def test_no_row_is_lost_repeated_or_out_of_order(sizes: list[int], size: int) -> None:
    groups = list(row_groups(tables(sizes), size))
    rows = [n for group in groups for n in group["n"].to_pylist()]
    assert rows == list(range(sum(sizes)))
    assert all(size <= group.num_rows < size + 5 for group in groups[:-1])


def test_thousands_of_tiny_tables_are_copied_into_a_few() -> None:
    (group,) = row_groups(tables([1] * 3_000), 100_000)
    assert group.num_rows == 3_000
    assert group["n"].num_chunks < 200

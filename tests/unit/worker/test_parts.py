"""What a handler returned is written as JSON has it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_worker.errors import ErrorClass, ItemError
from slurm_worker.parts import KEY_FIELD, to_lines

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
ROWS = st.dictionaries(TEXT.filter(lambda name: name != KEY_FIELD), VALUES, max_size=4)


@settings(deadline=None)
@given(TEXT, ROWS)
def test_a_row_is_written_with_its_key_before_it(key: str, row: dict[str, Any]) -> None:
    count, lines = to_lines(key, row)
    assert count == 1
    assert lines == to_lines(key, [row])[1]
    wanted = json.dumps({KEY_FIELD: key, **row}, ensure_ascii=False, separators=(",", ":"))
    assert lines == wanted + "\n"


@pytest.mark.parametrize(
    ("key", "row"),
    [
        ("k", {"a": float("nan")}),
        ("k", {"a": {1, 2}}),
        ("k", {"a": "\ud800"}),
        ("\ud800", {}),
        ("k", {KEY_FIELD: "k"}),
    ],
)
def test_a_row_that_is_not_json_is_the_handlers_bug(key: str, row: dict[str, Any]) -> None:
    for result in (row, [row]):
        with pytest.raises(ItemError) as refused:
            to_lines(key, result)
        assert refused.value.error_class is ErrorClass.HANDLER_BUG

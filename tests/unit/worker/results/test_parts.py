"""What a handler returned is written as JSON has it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_worker.errors import ErrorClass, ItemError
from slurm_worker.results.parts import KEY_FIELD, message_of, to_lines

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


@pytest.mark.parametrize(
    "clash",
    [
        {1: "a", "1": "b"},
        {"1": "b", 1: "a"},
        {None: 1, "null": 2},
        {True: 1, "true": 2},
        {False: 1, "false": 2},
        {1.5: 1, "1.5": 2},
        {-3: 1, "-3": 2},
        {1e22: 1, "1e+22": 2},
    ],
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda clash: clash,
        lambda clash: {"x": clash},
        lambda clash: {"x": [{"y": (1, clash)}]},
        lambda clash: [{"n": 1}, clash],
        lambda clash: [{"x": {"y": clash}}],
        lambda clash: {7: clash},
    ],
    ids=["top", "nested", "in a list", "rows", "nested rows", "below a number"],
)
def test_two_keys_that_become_one_in_json_are_refused(clash: dict[Any, Any], wrap: Any) -> None:
    with pytest.raises(ItemError, match=r"two keys of a dict, .* become one name") as refused:
        to_lines("k", wrap(clash))
    assert refused.value.error_class is ErrorClass.HANDLER_BUG


def test_keys_that_stay_different_in_json_are_written() -> None:
    row = {None: 1, True: 2, 1.5: 3, 7: {8: 9, "x": '"9":'}, "2020": {"1": 2}}
    assert json.loads(to_lines("k", {"x": row})[1])["x"] == json.loads(json.dumps(row))


KEYS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(
    [1.0, 1.5, "1", "1.0", "1.5", "-1", "null", "true", "false", "x"]
)  # fmt: skip


@settings(deadline=None)
@given(st.recursive(st.integers(), lambda inner: st.dictionaries(KEYS, inner, max_size=4)))
def test_a_row_has_as_many_values_as_the_dict_or_is_refused(value: Any) -> None:
    def count(of: Any) -> int:
        return sum(map(count, of.values())) if isinstance(of, dict) else 1

    try:
        _, lines = to_lines("k", {"x": value})
    except ItemError:
        return
    assert count(json.loads(lines)["x"]) == count(value)


@pytest.mark.parametrize(
    ("record", "message", "place"),
    [
        ({"message": "KeyError: 'a'", "place": "h.py:4 in f"}, "KeyError: 'a'", "h.py:4 in f"),
        ({"message": "no (h.py:4 in f)", "place": ""}, "no (h.py:4 in f)", ""),
        # As the release before wrote it.
        ({"message": "KeyError: 'a' (h.py:4 in f)"}, "KeyError: 'a'", "h.py:4 in f"),
        ({"message": "no route (to host)"}, "no route (to host)", ""),
    ],
)
def test_the_place_of_a_bug_is_a_field_of_its_record(
    record: dict[str, str], message: str, place: str
) -> None:
    assert message_of(record) == (message, place)

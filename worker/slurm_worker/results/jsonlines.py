"""JSON lines, read without loss: each line is one object, or an error.

Python's reader keeps the last of two equal names, rounds numbers, and accepts a value that
crosses a line end. Here each of these is an error with the number of its line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal, DecimalException
from typing import Any

Row = dict[str, Any]
#: Without an exponent, a number of so many characters has at most 15 digits, which a double holds.
_SHORT = 16


class BadLine(ValueError):
    """A line that can't be read without loss; lines are counted from 1."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"line {number:,}: {reason}")
        self.number = number


def parse(data: bytes, *, first: int = 1, exact: bool = False) -> list[Row]:
    """The objects in these whole lines, of which the `first` has that number; blank ones hold none.

    With `exact`, a number that a double does not hold, and half of a surrogate pair, are errors.
    Lines that Python wrote from its own values have no such numbers.

    Raises:
        BadLine: if a line is not one JSON object, or has a name twice in an object.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadLine(first + data.count(b"\n", 0, error.start), str(error)) from error
    # Only line by line can the line of half a surrogate pair be known.
    singly = exact and b"\\u" in data
    rows = None if singly else _parse_together(text, exact_float if exact else None)
    return _parse_singly(text, first, exact=exact) if rows is None else rows


def decode(text: str) -> Any:
    """A JSON document, if it can be read without loss.

    Raises:
        ValueError: if it is not JSON, has a name twice in an object, or holds NaN, infinity,
            a number that a double does not hold, or half of a surrogate pair.
        RecursionError: if it is nested too deeply.
    """
    value = _EXACT.decode(text)
    if "\\u" in text:
        _refuse_surrogates(value)
    return value


def decode_row(line: str) -> Row:
    """The object of one line, by the rules of `decode`; a ValueError says what is wrong with it."""
    return _row(line, _EXACT)


def exact_float(text: str) -> float:
    """The double of a number's text; a ValueError if, with as many digits, it is another number."""
    number = float(text)
    if (len(text) <= _SHORT and "e" not in text and "E" not in text) or repr(number) == text:
        return number
    try:
        wanted = Decimal(text)
        digits = len(wanted.as_tuple().digits)
        # `%.17g` writes more digits than are needed; they are still those of the double.
        kept = Decimal(repr(number)) == wanted or Decimal(f"{number:.{digits - 1}e}") == wanted
    except (DecimalException, ValueError):  # infinity, or an exponent beyond all bounds
        kept = False
    if not kept:
        raise ValueError(
            f"{text[:60]} is a number that a double does not keep (it becomes {number!r}); "
            "write it as text"
        )
    return number


def _parse_together(text: str, float_of: Callable[[str], float] | None) -> list[Row] | None:
    """All lines in one call, which takes half the time of a call for each.

    None if some line is not one object. Between the lines a constant is inserted that no line may
    hold. If it was read once for each line end, and always between two rows, then every row began
    and ended on its own line.
    """
    if not text.endswith("}\n"):
        return None
    ends = text.count("\n") - 1
    marks = _Marks()
    try:
        found = json.loads(
            f"[{text[:-1].replace(chr(10), ',NaN,')}]",
            parse_constant=marks,
            parse_float=float_of,
            object_pairs_hook=_once,
        )
    except (ValueError, RecursionError):
        return None
    rows: list[Row] = found[::2]
    if marks.read != ends or len(found) != 2 * ends + 1:
        return None
    if any(mark is not marks for mark in found[1::2]) or any(type(row) is not dict for row in rows):
        return None
    return rows


class _Marks:
    """The value of each constant that was read; counts them."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, _name: str) -> _Marks:
        self.read += 1
        return self


def _parse_singly(text: str, first: int, *, exact: bool) -> list[Row]:
    decoder = _EXACT if exact else _PLAIN
    rows = []
    for number, line in enumerate(text.split("\n"), first):
        if line and not line.isspace():
            try:
                rows.append(_row(line, decoder))
            except ValueError as error:
                raise BadLine(number, str(error)) from error
    return rows


def _row(line: str, decoder: json.JSONDecoder) -> Row:
    try:
        row = decoder.decode(line)
        if decoder is _EXACT and "\\u" in line:
            _refuse_surrogates(row)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if type(row) is not dict:
        raise ValueError(f"is {_kind_of(row)}; a row is an object")
    return row


def _refuse_surrogates(value: Any) -> None:
    """Half of a surrogate pair is text to Python only."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        raise ValueError(f"holds {half}, half of a surrogate pair, not text") from error


def _once(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"names {twice!a} twice in one object")
    return row


def _refuse(name: str) -> float:
    raise ValueError(f"holds {name}, which is not JSON; write null")


def _kind_of(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


_PLAIN = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=_once)
_EXACT = json.JSONDecoder(parse_constant=_refuse, parse_float=exact_float, object_pairs_hook=_once)

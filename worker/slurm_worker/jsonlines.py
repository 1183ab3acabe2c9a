"""JSON lines, read so that nothing in them is lost: each line is one object, or it is refused.

Python's reader keeps the last of two equal names, rounds numbers, and takes a value that
crosses a line end; each is refused here, with the number of its line.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal, DecimalException
from typing import Any

Row = dict[str, Any]
#: Without an exponent, a number of so many characters has at most 15 digits, which a double keeps.
_SHORT = 16


class BadLine(ValueError):
    """A line that can't be read as it is.

    Args:
        number: the line's number, counted from 1.
        reason: what is wrong, to read after "line N: ".
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"line {number:,}: {reason}")
        self.number = number


def parse(data: bytes, *, first: int = 1, exact: bool = False) -> list[Row]:
    """The objects in these lines; blank lines hold none.

    Args:
        data: whole lines, each with its end.
        first: the number of the first line.
        exact: whether to refuse numbers that a double does not keep, and half of a surrogate
            pair. What Python has written from its own values has neither of the first.

    Raises:
        BadLine: if a line is not one JSON object, names something twice in an object, or is
            not kept exactly.
    """
    float_of = exact_float if exact else None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BadLine(first + data.count(b"\n", 0, error.start), str(error)) from error
    rows = _parse_together(text, float_of)
    if rows is None:
        rows = _parse_singly(text, first, float_of)
    if exact and b"\\u" in data:
        _refuse_surrogates(text, first)
    return rows


def exact_float(text: str) -> float:
    """The double of a number's text.

    Raises:
        ValueError: if the double, written with as many digits, is another number.
    """
    number = float(text)
    if (len(text) <= _SHORT and "e" not in text and "E" not in text) or repr(number) == text:
        return number
    try:
        wanted = Decimal(text)
        digits = len(wanted.as_tuple().digits)
        # `%.17g` writes more digits than are needed; they are the double's own all the same.
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

    None if some line is not one object. Between the lines stands a constant that no line may
    hold. If it was read once for each line end, and each stands between two rows, then every
    row began and ended on its own line.
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
    if any(each is not marks for each in found[1::2]) or any(type(row) is not dict for row in rows):
        return None
    return rows


class _Marks:
    """Stands for each constant that was read, and counts them."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, _name: str) -> _Marks:
        self.read += 1
        return self


def _parse_singly(text: str, first: int, float_of: Callable[[str], float] | None) -> list[Row]:
    decoder = json.JSONDecoder(
        parse_constant=_refuse, parse_float=float_of, object_pairs_hook=_once
    )
    rows = []
    for number, line in enumerate(text.split("\n"), first):
        if not line or line.isspace():
            continue
        try:
            row = decoder.decode(line)
        except json.JSONDecodeError as error:
            raise BadLine(number, f"is not JSON: {error.msg} at column {error.colno}") from error
        except ValueError as error:
            raise BadLine(number, str(error)) from error
        except RecursionError as error:
            raise BadLine(number, "is nested too deeply") from error
        if type(row) is not dict:
            raise BadLine(number, f"is {_named(row)}; a row is an object")
        rows.append(row)
    return rows


def _refuse_surrogates(text: str, first: int) -> None:
    """Half of a surrogate pair is text to Python, and to no one else."""
    for number, line in enumerate(text.split("\n"), first):
        if "\\u" in line:
            try:
                json.dumps(json.loads(line), ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise BadLine(
                    number,
                    f"holds {ascii(error.object[error.start])[1:-1]}, half of a surrogate pair, "
                    "which is no text",
                ) from error


def _once(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"names {twice!a} twice in one object")
    return row


def _refuse(name: str) -> float:
    raise ValueError(f"holds {name}, which is not JSON")


def _named(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")

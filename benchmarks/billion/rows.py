"""A fast, small table for simulations of millions of tasks, with the guarantees of `MemoryRows`.

Each named statement is translated into Python once and not parsed at each write. Rows are replaced
and never changed, so that readers can share them. A row in an end state is packed as a tuple. A
test compares this table with `slurm_worker.testing.MemoryRows`, statement by statement.
"""

from __future__ import annotations

import operator
import re
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from slurm_worker.protocol.keys import TaskState
from slurm_worker.protocol.ports import Applied, Refused, Row, Statement, Value

_TOKEN = re.compile(r"\s*(<>|<=|>=|[=<>+\-(),]|[#:]?\w+)")
_ENDS = {state.value for state in TaskState if state.terminal}
_ORDERED = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}

Condition = Callable[[Row, Mapping[str, Value]], bool]
Update = Callable[[Row, Mapping[str, Value]], Row]
_Packed = tuple[tuple[str, ...], tuple[Value, ...]]


class LeanRows:
    """`ports.Rows` in a dict, for one thread; readers must not change rows."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, Row | _Packed]] = {}
        self._order: dict[str, list[str]] = {}
        self._compiled: dict[str, tuple[Condition, Update]] = {}
        #: The sets of names of packed rows, each stored once.
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}

    def get(self, pk: str, sk: str, *, consistent: bool = True) -> Row | None:
        found = self._rows.get(pk, {}).get(sk)
        return None if found is None else _unpacked(found)

    def put_new(self, row: Row) -> Applied | Refused:
        pk, sk = str(row["pk"]), str(row["sk"])
        standing = self.get(pk, sk)
        if standing is not None:
            return Refused(standing)
        order = self._order.setdefault(pk, [])
        if not order or sk > order[-1]:
            order.append(sk)
        else:
            insort(order, sk)
        self._rows.setdefault(pk, {})[sk] = dict(row)
        return Applied(row)

    def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
        condition, change = self._compiled.get(statement.name) or self._compile(statement)
        standing = self.get(pk, sk)
        before: Row = {} if standing is None else standing
        if not condition(before, statement.values):
            return Refused(standing)
        after = change(before, statement.values)
        after["pk"], after["sk"] = pk, sk
        if standing is None:
            return self.put_new(after)
        self._rows[pk][sk] = self._packed(after) if after.get("state") in _ENDS else after
        return Applied(after)

    def query(
        self,
        pk: str,
        *,
        after: str = "",
        limit: int | None = None,
        consistent: bool = False,
        backwards: bool = False,
    ) -> Iterator[Row]:
        order = self._order.get(pk, [])
        first = bisect_right(order, after) if after else 0
        if backwards:
            chosen = order[first:][::-1][:limit]
        else:
            chosen = order[first : None if limit is None else first + limit]
        partition = self._rows.get(pk, {})
        return iter([_unpacked(partition[sk]) for sk in chosen])

    def delete(self, pk: str, sk: str) -> None:
        if self._rows.get(pk, {}).pop(sk, None) is not None:
            self._order[pk].remove(sk)

    def _packed(self, row: Row) -> _Packed:
        names = tuple(row)
        return self._names.setdefault(names, names), tuple(row.values())

    def _compile(self, statement: Statement) -> tuple[Condition, Update]:
        made = compile_statement(statement)
        self._compiled[statement.name] = made
        return made


def compile_statement(statement: Statement) -> tuple[Condition, Update]:
    """A statement's condition and update as functions of a row and the values."""
    names: dict[str, Any] = {"ordered": _ordered}
    condition = _Translator(statement.condition).condition()
    changes = _Translator(statement.update).changes()
    lines = [f"def condition(r, v): return {condition}", "def update(r, v):", "  n = r.copy()"]
    lines += [f"  {change}" for change in changes]
    lines.append("  return n")
    exec("\n".join(lines), names)  # the text is made of our own statements
    return names["condition"], names["update"]


def _unpacked(row: Row | _Packed) -> Row:
    return row if isinstance(row, dict) else dict(zip(row[0], row[1], strict=True))


def _ordered(sign: str, a: Value, b: Value) -> bool:
    # As DynamoDB: values of different types, or none, are in no order.
    if isinstance(a, bool) or isinstance(b, bool) or type(a) is not type(b):
        return False
    found: bool = _ORDERED[sign](a, b)
    return found


class _Translator:
    """Translates the DynamoDB expressions that our statements use into Python."""

    def __init__(self, text: str) -> None:
        self._tokens = _TOKEN.findall(text)
        self._at = 0

    def condition(self) -> str:
        parts = [self._all()]
        while self._taken("OR"):
            parts.append(self._all())
        return f"({' or '.join(parts)})"

    def changes(self) -> list[str]:
        found = []
        while self._at < len(self._tokens):
            verb = self._next()
            while True:
                name = self._next()[1:]
                if verb == "SET":
                    self._expect("=")
                    found.append(f"n[{name!r}] = {self._sum()}")
                elif verb == "REMOVE":
                    found.append(f"n.pop({name!r}, None)")
                else:
                    raise ValueError(f"unexpected {verb!r} in an update expression")
                if not self._taken(","):
                    break
        return found

    def _all(self) -> str:
        parts = [self._comparison()]
        while self._taken("AND"):
            parts.append(self._comparison())
        return f"({' and '.join(parts)})"

    def _comparison(self) -> str:
        if self._taken("("):
            inner = self.condition()
            self._expect(")")
            return inner
        for word, test in (("attribute_exists", "in"), ("attribute_not_exists", "not in")):
            if self._taken(word):
                self._expect("(")
                name = self._next().lstrip("#")
                self._expect(")")
                return f"({name!r} {test} r)"
        left, sign, right = self._operand(), self._next(), self._operand()
        if sign in _ORDERED:
            return f"ordered({sign!r}, {left}, {right})"
        return f"({left} {'==' if sign == '=' else '!='} {right})"

    def _sum(self) -> str:
        text = self._operand()
        while self._at < len(self._tokens) and self._tokens[self._at] in "+-":
            text += f" {self._next()} {self._operand()}"
        return text

    def _operand(self) -> str:
        word = self._next()
        if word in ("if_not_exists", "list_append"):
            self._expect("(")
            if word == "if_not_exists":
                name = self._next()[1:]
                self._expect(",")
                text = f"(r[{name!r}] if {name!r} in r else {self._sum()})"
            else:
                first = self._sum()
                self._expect(",")
                text = f"({first} + {self._sum()})"
            self._expect(")")
            return text
        return f"v[{word[1:]!r}]" if word.startswith(":") else f"r.get({word[1:]!r})"

    def _taken(self, word: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at] == word:
            self._at += 1
            return True
        return False

    def _next(self) -> str:
        self._at += 1
        word: str = self._tokens[self._at - 1]
        return word

    def _expect(self, word: str) -> None:
        found = self._next()
        if found != word:
            raise ValueError(f"expected {word!r}, found {found!r}")

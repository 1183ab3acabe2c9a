"""Mutants of conditions: each is derived from the text of a statement's condition.

A condition of DynamoDB is a tree of ORs, ANDs and comparisons. It is broken in every way that lets
more writes through:

- it is dropped whole;
- one part of an AND is dropped, at any depth: so also the guard of an OR's branch;
- ``<`` becomes ``<=``, and ``>`` becomes ``>=``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

from slurm_worker.protocol.ports import Statement
from tests.simulator.stores.rows import statement_name

_WORD = re.compile(r"\s*(\(|\)|[^\s()]+(?:\(#\w+\))?)")
_SHARD = re.compile(r"#s\d+")
_WEAKER = {"<": "<=", ">": ">="}
#: Always true, for rows that exist and for those that do not.
_ALWAYS = "attribute_exists(#pk) OR attribute_not_exists(#pk)"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken condition.

    Args:
        statement: the name of the statement.
        broken: how its condition is broken.
    """

    statement: str
    broken: str

    def __str__(self) -> str:
        return f"{self.statement}: {self.broken}"


@dataclass(frozen=True, slots=True)
class _Node:
    """Parts that are joined by a word."""

    word: str
    parts: tuple[_Tree, ...]

    def __str__(self) -> str:
        texts = (f"({part})" if isinstance(part, _Node) else part for part in self.parts)
        return f" {self.word} ".join(texts)


#: A text is a comparison, or a function.
_Tree: TypeAlias = "_Node | str"


def mutants_of(statement: Statement) -> dict[Mutant, str]:
    """The broken conditions of a statement, by their mutant."""
    return _mutants(statement_name(statement), statement.condition)


def mutated(statement: Statement, mutant: Mutant) -> Statement:
    """The statement as the mutant has it; another statement is as it was."""
    if statement_name(statement) != mutant.statement:
        return statement
    return replace(statement, condition=mutants_of(statement)[mutant])


@lru_cache(maxsize=2000)
def _mutants(name: str, condition: str) -> dict[Mutant, str]:
    tree = _parsed(condition)
    found = {Mutant(name, "no condition"): _ALWAYS}
    for broken, weaker in _weaker(tree):
        # The stages of all shards are one statement.
        found[Mutant(name, _SHARD.sub("#s", broken))] = str(weaker)
    return found


def _weaker(tree: _Tree) -> Iterator[tuple[str, _Tree]]:
    """Each weaker tree, and how it differs."""
    if isinstance(tree, str):
        words = tree.split()
        if len(words) == 3 and words[1] in _WEAKER:
            weaker = " ".join((words[0], _WEAKER[words[1]], words[2]))
            yield weaker, weaker
        return
    for at, part in enumerate(tree.parts):
        if tree.word == "AND":
            rest = tree.parts[:at] + tree.parts[at + 1 :]
            yield f"without {part}", rest[0] if len(rest) == 1 else _Node("AND", rest)
        for broken, other in _weaker(part):
            yield broken, _Node(tree.word, (*tree.parts[:at], other, *tree.parts[at + 1 :]))


def _parsed(condition: str) -> _Tree:
    words = _WORD.findall(condition)
    tree = _joined(words, "OR")
    if words:
        raise ValueError(f"{condition!r} is not a condition: {words[0]!r} is left")
    return tree


def _joined(words: list[str], word: str) -> _Tree:
    parts = [_part(words, word)]
    while words and words[0] == word:
        words.pop(0)
        parts.append(_part(words, word))
    return parts[0] if len(parts) == 1 else _Node(word, tuple(parts))


def _part(words: list[str], word: str) -> _Tree:
    if word == "OR":
        return _joined(words, "AND")
    if words[0] == "(":
        words.pop(0)
        tree = _joined(words, "OR")
        words.pop(0)
        return tree
    if words[0].startswith("attribute_"):
        return words.pop(0)
    comparison, words[:3] = " ".join(words[:3]), []
    return comparison

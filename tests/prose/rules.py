"""What is wrong with a passage: words of the list, and sentences that are too long."""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.prose.reading import Passage

MOST_WORDS = 30  # between two of . ; : ! ?
_START = r"(?:\A|(?<=[.;:!?]\s)|(?<=\n\n))"
_END_OF_SENTENCE = re.compile(
    r"(?<=[.;:!?])\s+"  # a mark
    r"|\n\s*\n|\n\s*(?=[-*|]\s|\d+\.\s)"  # a paragraph, an item, a row
    r"|\n\s*(?=\S.*\S {3,}\S)"  # a row of a table in a docstring
)
_CODE = re.compile(r"[=<>{}\[\]$|\\─│]")


@dataclass(frozen=True, slots=True)
class Rule:
    """A phrase to avoid, what to write instead, and examples of both."""

    find: re.Pattern[str]
    use: str
    bad: list[str]
    good: str


@functools.cache
def rules() -> list[Rule]:
    """The rules of the word list beside this module."""
    rows = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text("utf-8"))
    return [
        Rule(_pattern(row["find"]), row["use"], _as_list(row["bad"]), row["good"]) for row in rows
    ]


def problems(passage: Passage) -> Iterator[tuple[int, str]]:
    """The problems of a passage, each with its line."""
    for rule in rules():
        for match in rule.find.finditer(passage.text):
            phrase = " ".join(match[0].split())
            yield _line(passage, match.start()), f'"{phrase}": {rule.use}'
    for start, sentence in _sentences(passage.text):
        words = len(re.findall(r"\w[\w'/.-]*", sentence))
        if words > MOST_WORDS and len(_CODE.findall(sentence)) < 2:
            beginning = " ".join(sentence.split()[:5])
            yield _line(passage, start), f'"{beginning} …": {words} words; make two sentences'


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    for end in _END_OF_SENTENCE.finditer(text):
        yield start, text[start : end.start()]
        start = end.end()
    yield start, text[start:]


def _line(passage: Passage, position: int) -> int:
    return passage.line + passage.text.count("\n", 0, position)


def _pattern(find: str) -> re.Pattern[str]:
    spaced = (
        find.replace(" )", r"\s)")
        .replace(" ?", r"\s*")
        .replace(" ", r"\s+")
        .replace("<start>", _START)
    )
    return re.compile(rf"(?<![\w-])(?:{spaced})(?![\w-])", re.IGNORECASE)


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value

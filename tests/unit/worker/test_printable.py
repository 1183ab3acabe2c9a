"""No control character of a text reaches a terminal, and nothing else of it changes."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_worker.errors import ServiceError, UserError
from slurm_worker.printable import encodable, printable, printable_json, printable_lines

#: What can move the cursor, change colours, turn text round, or can't be encoded.
HOSTILE = "a\x1b[2Jb\rc\x07d\x9b31me\x7ff\u202eg\u2028h\ud800i\x00"


def is_visible(text: str, besides: str = "") -> bool:
    return not any(
        unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(each) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI")
        for each in text
        if each not in besides
    )


@given(st.text(st.characters(exclude_categories=[])))
def test_no_control_character_is_printed(text: str) -> None:
    assert is_visible(printable(text))
    assert is_visible(printable_lines(text), besides="\n\t")
    printable_lines(text).encode()


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Zl", "Zp"])))
def test_other_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == printable_lines(text) == printable_json(text) == text


def test_a_control_character_is_shown_as_its_escape() -> None:
    assert printable("\x1b[31m\n") == r"\x1b[31m\n"
    assert printable_lines("a\r\n\tb\rc") == "a\n\tb" + r"\rc"


@given(st.text(st.characters(exclude_categories=[])))
def test_a_line_of_json_means_the_same(text: str) -> None:
    line = printable_json(json.dumps({"text": text}, ensure_ascii=False))
    assert is_visible(line)
    assert json.loads(line) == {"text": encodable(text)}


@pytest.mark.parametrize("kind", [UserError, ServiceError])
def test_an_error_message_shows_the_hidden_characters_that_it_quotes(kind: type[Exception]) -> None:
    assert is_visible(str(kind(f"input.path: {HOSTILE}")))

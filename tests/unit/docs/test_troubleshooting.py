"""The troubleshooting page shows what is really said: each message of it is provoked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Cli
from tests.unit.docs.pages import DOCS, blocks
from tests.unit.docs.provoked import PROVOKED, Bench

PAGE = DOCS / "how-to" / "troubleshooting.md"
MESSAGES = [line for each in blocks(PAGE) if each.kind == "text" for line in each.text.splitlines()]


@pytest.mark.parametrize("message", MESSAGES)
def test_each_message_of_the_page_has_something_that_provokes_it(message: str) -> None:
    assert [words for words in PROVOKED if words in message] != []


@pytest.mark.parametrize("words", PROVOKED)
def test_what_a_mistake_has_said_is_what_the_page_shows(
    words: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = PROVOKED[words](Bench(cli, tmp_path, monkeypatch))
    (shown,) = (each for each in MESSAGES if words in each)
    pattern = ".*".join(map(re.escape, shown.split("…")))
    assert re.fullmatch(pattern, said), said

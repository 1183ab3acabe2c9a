"""The prose linter finds a bad phrase in each kind of place, and each of its rules works."""

from pathlib import Path

import pytest

from tests.prose.__main__ import main
from tests.prose.reading import Passage
from tests.prose.rules import MOST_WORDS, Rule, problems, rules


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.find.pattern[:40])
def test_a_rule_finds_its_bad_examples_and_no_rule_finds_the_good_ones(rule: Rule) -> None:
    for bad in rule.bad:
        assert rule.find.search(bad), bad
    assert list(problems(Passage(1, rule.good))) == []


PLACES = {
    "page.md": ["text", "A line.\n\nThe job\nis gone on with.\n", 4],
    "cell.md": ["table", "| a |\n| --- |\n| the job is gone on with |\n", 3],
    "item.md": ["list", "- one\n- the job is gone on with\n", 2],
    "doc.py": ["docstring", 'def run():\n    """Run.\n\n    It is gone on with.\n    """\n', 4],
    "comment.py": ["comment", "a = 1\n# The job is\n# gone on with.\n", 3],
    "error.py": ["error", 'raise UserError(\n    f"{job} is gone on with"\n)\n', 2],
    "joined.py": ["joined strings", 'say("the job "\n    "is gone on with")\n', 1],
    "help.py": ["help", '@click.option("--x", help="How it is gone on with.")\ndef f(): ...\n', 1],
    "text.html": ["page", "<p>{{ job }}\nis <b>not</b>\ngone on with</p>\n", 3],
    "title.html": ["attribute", '<p>\n<button title="It is gone on with"></button></p>\n', 2],
    "comment.js": ["script comment", "let a;\n// It is gone on with.\n", 2],
    "text.js": ["script string", "show(`${job} is gone on with`);\n", 1],
    "file.yaml": ["yaml comment", "a: 1  # It is gone on with.\n", 1],
    "variables.tf": ["description", 'variable "x" {\n  description = "It is gone on with."\n}', 2],
    "schema.json": ["description", '{\n"description": "It is gone on with."}', 2],
    "Makefile": ["target", "run: ## how it is gone on with\n", 1],
}


@pytest.mark.parametrize("name", PLACES)
def test_a_bad_phrase_is_found_with_its_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, source, line = PLACES[name]
    path = tmp_path / name
    path.write_text(str(source), "utf-8")
    assert main([str(path)]) == 1
    assert capsys.readouterr().out.startswith(f'{path}:{line}: "gone on": ')


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (
            "page.md",
            "    it is gone on with\n\n```\nit is gone on with\n```\n`it is gone on with`\n",
        ),
        ("code.py", '"""Prints `it is gone on with`."""\n'),
        ("page.html", "<p>{# it is gone on with #}{{ it is gone on with }}</p>"),
    ],
)
def test_code_is_not_prose(name: str, source: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(source, "utf-8")
    assert main([str(path)]) == 0


def test_a_long_sentence_is_found_and_a_list_is_not() -> None:
    words = "word " * MOST_WORDS
    assert list(problems(Passage(3, f"A short one.\n{words}.\n"))) == []
    [(line, problem)] = problems(Passage(3, f"A short one.\nOne {words}.\n"))
    assert (line, problem) == (
        4,
        f'"One word word word word …": {MOST_WORDS + 1} words; make two sentences',
    )
    assert list(problems(Passage(1, "- word\n" * MOST_WORDS * 2))) == []

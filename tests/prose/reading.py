"""Reads the text of a file that people read, without code and with its line numbers."""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

CODE = "X"  # takes the place of code or of a value in a sentence


@dataclass(frozen=True, slots=True)
class Passage:
    """A text with the number of its first line; its line ends are those of the file."""

    line: int
    text: str


def passages(path: Path) -> Iterator[Passage]:
    """The texts of a file that a person reads; none of a file of unknown type."""
    reader = READERS.get(path.suffix or path.name)
    return reader(path.read_text("utf-8")) if reader else iter(())


def _markdown(source: str) -> Iterator[Passage]:
    row = 0
    for token in MarkdownIt("commonmark").enable("table").parse(source):
        row = token.map[0] if token.map else row
        if token.type == "inline":
            yield Passage(row + 1, "".join(map(_span, token.children or ())))


def _span(token: Token) -> str:
    if token.type in {"softbreak", "hardbreak"}:
        return "\n"
    if token.type in {"text", "image"}:
        return token.content
    return CODE if token.type == "code_inline" else ""


_SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|REPLACE|DELETE|CREATE|PRAGMA)\b")


def _python(source: str) -> Iterator[Passage]:
    """Comments, and each string of two words or more: docstrings, messages, help."""
    yield from _python_comments(source)
    nodes = list(ast.walk(ast.parse(source)))
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            values = [
                part.value if isinstance(part, ast.Constant) else CODE for part in node.values
            ]
            text = "".join(map(str, values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = "" if id(node) in parts else node.value
        else:
            continue
        if re.search(r"[a-zX],? [a-zX]", text) and not _SQL.match(text):
            yield Passage(node.lineno, _without_code(text))


def _python_comments(source: str) -> Iterator[Passage]:
    """Comments; one over several lines is one text."""
    block: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        row, alone = token.start[0], not token.line[: token.start[1]].strip()
        if block and not (alone and row == last + 1):
            yield Passage(last - len(block) + 1, _without_code("\n".join(block)))
            block = []
        block.append(token.string.lstrip("#!: "))
        last = row
    if block:
        yield Passage(last - len(block) + 1, _without_code("\n".join(block)))


def _comments_and_descriptions(source: str) -> Iterator[Passage]:
    """Comments after a hash, and values that people read, of YAML, TOML, JSON and others."""
    for row, line in enumerate(source.splitlines(), 1):
        if shown := re.search(r"(?:^|\s)#+\s(.*)|\b(?:description|label)\"?\s*[:=](.*)", line):
            yield Passage(row, _without_code(shown[1] or shown[2]))


class _Page(HTMLParser):
    """Collects the texts of a page, and of the attributes that a browser shows."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Passage] = []

    def handle_data(self, data: str) -> None:
        self.found.append(Passage(self.getpos()[0], data))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        shown = {"title", "aria-label", "placeholder", "alt"}
        self.found += [
            Passage(self.getpos()[0], text) for name, text in attrs if name in shown and text
        ]


def _html(source: str) -> Iterator[Passage]:
    """A page, or a Jinja template of one."""
    page = _Page()
    page.feed(re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", _blank, source, flags=re.DOTALL))
    return iter(page.found)


_SCRIPT = re.compile(
    r"//(?P<line>[^\n]*)|/\*(?P<block>.*?)\*/"
    r"|(?P<quote>[\"'`])(?P<string>(?:\\.|(?!(?P=quote)).)*)(?P=quote)",
    re.DOTALL,
)


def _script(source: str) -> Iterator[Passage]:
    """Comments and strings of a language with the syntax of JavaScript."""
    for part in _SCRIPT.finditer(source):
        text = part["line"] or part["block"] or part["string"] or ""
        if " " in text.strip():
            text = re.sub(r"\$\{[^}]*\}", CODE, text)
            yield Passage(source.count("\n", 0, part.start()) + 1, _without_code(text))


def _without_code(text: str) -> str:
    return re.sub(r"(``?)[^`]+\1", _blank, text)


def _blank(found: re.Match[str]) -> str:
    return CODE + "\n" * found[0].count("\n")


READERS: dict[str, Callable[[str], Iterator[Passage]]] = {
    ".md": _markdown,
    ".py": _python,
    ".html": _html,
    ".js": _script,
    **dict.fromkeys(
        (".yaml", ".yml", ".toml", ".json", ".sh", ".tf", ".conf", ".Dockerfile", "Makefile"),
        _comments_and_descriptions,
    ),
}

"""The pages of the documentation, and the code blocks in them, as a Markdown parser sees them."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from markdown_it import MarkdownIt

from tests.stack.settings import ROOT

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    ROOT / "worker" / "README.md",
    *sorted(each for each in DOCS.rglob("*.md") if "_build" not in each.parts),
]
#: The kind of a block that is indented instead of fenced: shell commands.
COMMANDS = "commands"
_NAME = re.compile(r"# (\w+\.(?:py|yaml))")


@dataclass(frozen=True)
class Block:
    """A code block.

    Args:
        page: where it stands.
        line: the line of the page, from 1.
        kind: the language that its fence names; `COMMANDS` for an indented one.
        text: what is in it.
        name: the file that a reader is to save it as; empty where the page doesn't say.
    """

    page: Path
    line: int
    kind: str
    text: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """A page's blocks, in order, those within lists too."""
    found = []
    before = ""
    text = page.read_text()
    for token in MarkdownIt().parse(text):
        if token.type == "inline":
            before = token.content
        if token.type not in ("fence", "code_block"):
            continue
        kind = token.info.strip() if token.type == "fence" else COMMANDS
        first = _NAME.fullmatch(token.content.split("\n", 1)[0])
        # A CSV has no comments: the sentence before it says its name.
        csv = re.search(r"`(\w+\.csv)`", before) if kind == "csv" else None
        name = (first or csv)[1] if first or csv else ""  # type: ignore[index]
        assert token.map is not None
        found.append(Block(page, token.map[0] + 1, kind, token.content, name))
    return found


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]


def named(page: Path, name: str) -> str:
    """The one block of a page that is to be saved under this name."""
    (found,) = (block for block in blocks(page) if block.name == name)
    return found.text


def save(folder: Path, named_blocks: list[Block]) -> None:
    """Save blocks as a reader does; of several with one name the last counts."""
    for block in named_blocks:
        if block.name:
            (folder / block.name).write_text(block.text)


def load(path: Path) -> ModuleType:
    """Run a Python file as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with in_folder(path.parent):
        spec.loader.exec_module(module)
    return module


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Import from this folder first; what was imported from it is forgotten afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if file.startswith(str(folder)):
                del sys.modules[name]


def console(block: Block) -> tuple[list[str], list[str]]:
    """The commands of a console block, and all that it shows of what they print."""
    lines = block.text.splitlines()
    typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return typed, [line for line in lines if not line.startswith("$ ")]

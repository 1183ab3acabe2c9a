"""Output of commands: the result on stdout, as text or JSON; everything else on stderr.

Every command prints through here, so that no text of an item, a handler, Slurm or S3 reaches
the terminal with its control characters. rich is imported only where a terminal will show it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

import click

from slurm_worker.printable import printable_lines

#: (label, value) lines of a result, as a person reads them.
Fields = Sequence[tuple[str, str]]


def say(message: str) -> None:
    """Report progress: a line on stderr."""
    click.echo(_indented(message), err=True)


def show(text: str, *, head: str = "", colour: str = "") -> None:
    """Print text on stdout, line by line, behind a `head` in one of click's colours."""
    start = click.style(head, fg=colour) if head else ""
    click.echo(f"{start}{printable_lines(text)}", color=sys.stdout.isatty())


def emit(as_json: bool, document: Mapping[str, object], shown: Fields | str) -> int:
    """Print a command's result on stdout: as JSON in one line, or as people read it; return 0.

    `document` is the stable machine form. Fields are a table on a terminal, and ``label: value``
    lines in a pipe. A field without a label continues the one before it.
    """
    if as_json:
        click.echo(json.dumps(document, sort_keys=True))
    elif isinstance(shown, str):
        show(shown)
    elif sys.stdout.isatty():
        _show_table(shown)
    else:
        for label, value in shown:
            click.echo(_indented(f"{label}: {value}" if label else f"  {value}"))
    return 0


def by_class(counts: Mapping[str, int]) -> str:
    """Counts per error class, the largest first: ``9,430 (bad_input 9,430)``."""
    total = sum(counts.values())
    if not total:
        return "0"
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f"{total:,} ({', '.join(f'{name} {count:,}' for name, count in largest if count)})"


def by_count(counts: Mapping[str, int]) -> str:
    """Counts by state or class, the largest first: ``2 RUNNING, 1 PENDING``."""
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {name}" for name, count in largest if count) or "none"


def _indented(text: str) -> str:
    """The text with its further lines indented, so that none looks like a new line."""
    return "\n    ".join(printable_lines(text).split("\n"))


def _show_table(fields: Fields) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, value in fields:
        table.add_row(label, Text(printable_lines(value)))
    Console().print(table)

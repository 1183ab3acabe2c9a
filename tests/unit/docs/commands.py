"""Checks of shell commands that documentation shows, without running them.

What is ours is parsed by the very parsers that would run it; of other programs only the known ones
may stand there.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from importlib.metadata import metadata

import click

from airflow_slurm_provider.cli.app import slurmctl
from slurm_worker import __main__ as worker
from tests.stack.settings import ROOT

#: Programs that every reader has, or that the page is about.
_OTHERS = frozenset(
    {
        *(".", "cat", "cd", "crontab", "echo", "flock", "git", "grep", "head", "ls", "mkdir"),
        *("rm", "seq", "ssh", "sqlite3"),
    }
)
_SEPARATORS = frozenset({"|", "||", "&&", ";", "(", ")", "&"})
_OURS = "airflow-slurm-provider"


def check_line(line: str) -> None:
    """Refuse a line with a command that is not right."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in _SEPARATORS:
            if words:
                _check(words)
            words = []
        else:
            words.append(word)


def _check(words: list[str]) -> None:
    words = _without_redirections(words)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words:
        return
    program, arguments = words[0], words[1:]
    if program in _CHECKS:
        _CHECKS[program](arguments)
    else:
        assert program in _OTHERS, f"{program!r} is a program that nobody checks"


def _without_redirections(words: list[str]) -> list[str]:
    kept, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word in (">", ">>", "<", "2>"):
            skip = True
        else:
            kept.append(word)
    return kept


def _slurmctl(arguments: list[str]) -> None:
    if arguments in (["--version"], ["--help"]):
        return
    parent = click.Context(slurmctl, info_name="slurmctl")
    command = slurmctl.get_command(parent, arguments[0])
    assert command is not None, f"slurmctl has no command {arguments[0]!r}"
    if arguments[1:] != ["--help"]:
        # A script's own argument may be any valid word.
        words = [re.sub(r"\$\d", "job-1", word) for word in arguments[1:]]
        command.make_context(arguments[0], words, parent=parent)


def _worker(arguments: list[str]) -> None:
    if arguments != ["--help"]:
        worker.parser().parse_args(arguments)


def _make(arguments: list[str]) -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in arguments:
        assert word in targets or "=" in word, f"the Makefile has no target {word!r}"


def _pip(arguments: list[str]) -> None:
    assert arguments[0] == "install", f"pip {arguments[0]}?"
    extras = metadata(_OURS).get_all("Provides-Extra") or []
    for word in arguments[1:]:
        match = re.fullmatch(rf"(?:\.|{_OURS})\[([a-z,]+)\]", word)
        if match:
            assert {*match[1].split(",")} <= {*extras}, f"{word!r}: there are {sorted(extras)}"


def _python(arguments: list[str]) -> None:
    if arguments[0] == "-c":
        ast.parse(arguments[1])
    elif arguments[:2] == ["-m", "slurm_worker"]:
        _worker(arguments[2:])
    elif arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]) is not None, f"no module {arguments[1]}"
    else:
        assert arguments[0].endswith(".py"), f"python {arguments[0]}?"


_CHECKS = {
    "slurmctl": _slurmctl,
    "slurm-worker": _worker,
    "make": _make,
    "pip": _pip,
    "python": _python,
    "python3": _python,
}

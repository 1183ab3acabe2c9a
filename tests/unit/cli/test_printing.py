"""What items, handlers, Slurm or S3 say reaches a terminal without its control characters."""

from __future__ import annotations

import ast
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import airflow_slurm_provider.cli
from airflow_slurm_provider.cli.app import ExitCode
from slurm_worker.errors import ItemError
from tests.unit.cli.conftest import Cli, Ended, Handler
from tests.unit.worker.test_printable import HOSTILE, is_visible

#: A message that would pass for a line of the command's own.
FORGED = f"{HOSTILE}\nstate: done"


@pytest.fixture
def handler() -> Handler:
    class Hostile(Handler):
        def __call__(self, item: dict[str, Any], context: Any) -> dict[str, Any]:
            raise ItemError("bad_input", FORGED)

    return Hostile()


def check(ended: Ended) -> None:
    assert ended.code in (ExitCode.OK, ExitCode.JOB_FAILED), ended.err
    for text in (ended.out, ended.err):
        assert is_visible(text, besides="\n\t")
        assert "\nstate: done" not in text


def test_control_characters_of_a_handlers_messages_are_escaped(cli: Cli) -> None:
    cli.submit()
    cli.work()
    ended = cli("errors", "job-1")
    check(ended)
    assert r"\x1b[2J" in ended.out
    check(cli("errors", "job-1", "--json"))


def test_control_characters_of_a_workers_log_are_escaped(cli: Cli) -> None:
    cli.submit()
    line = {"event": FORGED, "level": "error", "worker": HOSTILE, "error": FORGED, "at": "\u2028"}
    key = f"{cli.services.paths(cli.world.job).logs}000-0/w-000.jsonl.gz"
    text = json.dumps({**line, "exception": FORGED}, ensure_ascii=False)
    data = f"{text}\n".encode(errors="backslashreplace")
    cli.world.objects.put(key, gzip.compress(data))
    ended = cli("logs", "job-1", "--errors")
    check(ended)
    assert r"\x1b[2J" in ended.out
    check(cli("logs", "job-1", "--json"))


def test_control_characters_of_slurms_output_are_escaped(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.submit()
    monkeypatch.setattr(cli.slurm, "output", lambda *_: f"12 %\r{HOSTILE}\r\n")
    ended = cli("logs", "job-1", "--worker", "101_0", "--output")
    check(ended)
    assert ended.out.startswith(r"12 %\ra\x1b[2Jb")


def test_control_characters_of_the_reason_of_a_stop_are_escaped(cli: Cli) -> None:
    cli.submit()
    cli.services.jobs(cli.world.job).stop(FORGED)
    check(cli("status", "job-1"))
    check(cli("wait", "job-1"))


def test_control_characters_of_actors_in_the_audit_log_are_escaped(cli: Cli) -> None:
    cli.submit()
    cli.services.jobs(cli.world.job).audit(FORGED, FORGED, {"why": FORGED})
    ended = cli("events", "job-1")
    check(ended)
    assert r"\nstate: done" in ended.out


def test_control_characters_in_a_traceback_are_escaped(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError(HOSTILE)

    monkeypatch.setattr(cli.world.rows, "get", broken)
    ended = cli("status", "job-1")
    assert ended.code == ExitCode.BUG
    assert is_visible(ended.err, besides="\n\t")


def test_a_terminal_shows_markup_as_text(cli: Cli) -> None:
    from airflow_slurm_provider.cli.rendering.watch_screen import View, render
    from airflow_slurm_provider.coordinator.watcher import Watcher

    cli.submit()
    cli.services.jobs(cli.world.job).stop("[/red] [bold]no[/bold] \x1b[2J")
    poll = Watcher(cli.services, cli.world.job, lambda _: None).poll()
    out = io.StringIO()
    Console(file=out, width=200).print(render(View(poll)))
    assert r"[/red] [bold]no[/bold] \x1b[2J" in out.getvalue()


def test_every_command_prints_through_one_module() -> None:
    folder = Path(airflow_slurm_provider.cli.__file__).parent
    direct = [
        f"{path.name}:{node.lineno}"
        for path in folder.rglob("*.py")
        if path.name not in ("output.py", "app.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("click.echo", "click.secho", "print", "sys.stdout.write")
    ]
    assert direct == []

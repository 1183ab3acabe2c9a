"""The commands that the documentation shows, run as they stand."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.stack.settings import ROOT

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


def run(lines: list[str], environment: Mapping[str, str]) -> str:
    """What a shell in the checkout prints for these lines; it stops at the first that fails."""
    path = f"{ROOT}/.venv/bin:{environment['PATH']}"
    ended = subprocess.run(
        ["sh", "-eu", "-c", "\n".join(lines)],
        cwd=ROOT,
        env={**environment, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_first_session_of_the_readme(environment: Mapping[str, str]) -> None:
    text = (ROOT / "README.md").read_text().split("## First session without Airflow")[1]
    lines = re.findall(r"^    (\S.*)$", text.split("\n## ")[0], re.MULTILINE)
    assert lines[0].startswith("make stack-up")
    assert "319,809" in run(lines, environment)


@pytest.mark.parametrize("name", ["cli", "retries", "datasets", "cost", "doctor"])
def test_the_sessions_of_a_guide(environment: Mapping[str, str], name: str) -> None:
    guide = (ROOT / "docs" / "guides" / f"{name}.md").read_text()
    consoles = re.findall(r"^```console\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    lines = [line for console in consoles for line in console.splitlines()]
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    shown = [line for line in lines if not line.startswith("$ ")]
    try:
        printed = run(commands, environment)
    finally:
        Path(ROOT / "status.json").unlink(missing_ok=True)
    assert commands
    assert printed.splitlines()[-len(shown) :] == shown or not shown

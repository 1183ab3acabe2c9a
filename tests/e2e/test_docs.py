"""The commands that the documentation shows, run as they stand."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.stack.settings import ROOT
from tests.unit.docs.pages import COMMANDS, DOCS, Block, blocks, console, named

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


def run(lines: list[str], environment: Mapping[str, str], folder: Path = ROOT) -> str:
    """What a shell in a folder prints for these lines; it stops at the first that fails."""
    path = f"{ROOT}/.venv/bin:{environment['PATH']}"
    ended = subprocess.run(
        ["sh", "-eu", "-c", "\n".join(lines)],
        cwd=folder,
        env={**environment, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_example_of_the_readme(
    environment: Mapping[str, str], tmp_path: Path, job_id: str
) -> None:
    """Its set-up too, but for the clone; the stack that is up may have another kind of cluster."""
    page = blocks(ROOT / "README.md")
    clone, *setup = next(each for each in page if each.kind == COMMANDS).text.splitlines()
    assert clone.startswith("git clone")
    assert setup == ["STACK=embedded make stack-up", ". .stack/env"]
    run([line.removeprefix("STACK=embedded ") for line in setup], environment)
    example = [each for each in page if each.name in ("handler.py", "config.yaml")]
    example += [each for each in page if each.kind == "console"]
    assert follow(example, tmp_path, environment, "squares", job_id) == 6


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


def follow(
    page: list[Block], folder: Path, environment: Mapping[str, str], old: str, new: str
) -> int:
    """Save and type what blocks of a page say, for another job; how many lines were compared.

    ADDRESS stands for that of the last dataset.
    """
    compared, address = 0, ""
    for block in page:
        text = block.text.replace(old, new).replace("ADDRESS", address)
        if block.name:
            (folder / block.name).write_text(text)
        elif block.kind == "console":
            typed, shown = console(Block(block.page, block.line, block.kind, text))
            printed = run(typed, environment, folder).splitlines()
            address = next((each[9:] for each in printed if each.startswith("dataset: ")), address)
            for line in shown:
                assert line in printed, f"{block}: {line!r} is not printed, but {printed}"
                printed = printed[printed.index(line) + 1 :]
                compared += 1
    return compared


def test_the_tutorial_on_the_stack(
    environment: Mapping[str, str], tmp_path: Path, job_id: str
) -> None:
    """Steps 4 to 7; the steps before are the stack's."""
    page = DOCS / "tutorial.md"
    lines = page.read_text().splitlines()
    first = lines.index("## 4. A handler and its items")
    last = lines.index("## The same from Airflow")
    steps = [block for block in blocks(page) if first < block.line <= last]
    assert follow(steps, tmp_path, environment, "cities-1", job_id) > 15


def test_the_script_for_cron_goes_from_config_to_dataset(
    environment: Mapping[str, str], tmp_path: Path, job_id: str
) -> None:
    tutorial, guide = DOCS / "tutorial.md", DOCS / "how-to" / "without-airflow.md"
    for name in ("cities.csv", "config.yaml"):
        (tmp_path / name).write_text(named(tutorial, name))
    (tmp_path / "handler.py").write_text("def handle(item, context):\n    return dict(item)\n")
    (script,) = (block.text for block in blocks(guide) if block.kind == "bash")
    (tmp_path / "backfill.sh").write_text(script)
    for _ in range(2):  # it may be run again at any time
        printed = run([f"bash backfill.sh config.yaml {job_id}"], environment, tmp_path)
        assert "rows out: 5" in printed

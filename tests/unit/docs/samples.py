"""Texts that pages show, held against the code that writes them."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable

from importlinter.api import read_configuration

from slurm_worker.protocol.keys import JobId, TaskId
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.rate_limits import limiter
from tests.stack.settings import ROOT

WORKER = ROOT / "worker" / "slurm_worker"
#: Letters that a text needs in common with a message of the code to count as one.
_ENOUGH = 12
#: The column at which the worker begins in the picture of the house.
_WALL = 48


@functools.cache
def templates() -> list[re.Pattern[str]]:
    """Every text of the code that is filled in, as a pattern of what comes of it."""
    found: set[str] = set()
    for folder in (ROOT / "airflow_slurm_provider", WORKER):
        for path in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.add(_pattern(node))
    return [re.compile(each) for each in sorted(found) if len(re.sub(r"\W", "", each)) > _ENOUGH]


def _pattern(node: ast.JoinedStr) -> str:
    parts = [
        re.escape(str(each.value)) if isinstance(each, ast.Constant) else ".+?"
        for each in node.values
    ]
    return "".join(parts)


def check_sample(text: str) -> None:
    """Refuse a text with a message that is none of the code's.

    A message is a line, and the lines behind it that are indented.
    """
    for message in re.split(r"\n(?! )", text.rstrip("\n")):
        line = re.sub(r"\n +", " ", message)
        assert any(each.search(line) for each in templates()), f"nothing says this: {line}"


def check_formula(text: str) -> None:
    """Refuse a bound of the rate limit other than the limiter's own."""
    ours = re.sub(r"\s+", "", text).replace("≤", "<=").replace("·", "*").replace("2ε", "2*eps")
    assert ours in re.sub(r"\s+", "", limiter.__doc__ or "")


def check_layout(text: str) -> None:
    """Refuse names of objects that the code doesn't use."""
    paths, task = JobPaths("", JobId("j")), TaskId("000-00000001")
    keys = [
        *(
            paths.config("x"),
            paths.code("x"),
            paths.segment(0, 0),
            paths.draft_summary(0, 1),
            paths.log("s", "w", 0),
        ),
        *(paths.part(task, 1, "u", "jsonl.gz"), paths.done(task), paths.progress),
        *(
            paths.shard_progress(0),
            paths.anomalies,
            paths.manifest,
            paths.errors,
            paths.inline("x"),
        ),
    ]
    known = {key.removeprefix(paths.root).split("/")[0] for key in keys}
    shown = text.replace("<prefix>/jobs/<job>/", "")
    used = set(re.findall(r"(?<![\w/>.…-])([a-z]+)/[<_a-z]", shown))
    assert used, "no folder is named"
    assert used <= known, f"{used - known}: there are {sorted(known)}"


def check_house(text: str) -> None:
    """Refuse a picture whose floors are not those of the import contracts, in their order."""
    contracts = read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    floors = {each["id"]: each.get("layers", []) for each in contracts}
    lines = [line for line in text.splitlines()[1:] if line]
    provider, worker = (
        [line[part] for line in lines] for part in (slice(_WALL), slice(_WALL, None))
    )
    coordinator = [line for line in provider if line.startswith(" ") and line.strip()]
    faces = [line for line in provider if not line.startswith(" ")]
    assert _rooms(faces) == _rooms(floors["faces"])
    assert _rooms(coordinator) == _rooms(floors["coordinator"])
    assert _rooms(worker) == _rooms(floors["worker"])


def _rooms(floors: Iterable[str]) -> list[set[str]]:
    return [rooms for floor in floors if (rooms := set(re.findall(r"[a-z_]+", floor)))]


def check_modules(text: str) -> None:
    """Refuse names of the worker's files that are not there."""
    for name in re.findall(r"\w+/\w+\.py", text):
        assert (WORKER / name).is_file(), f"{name} is not there"

"""A handler is found, or one line says why not; what it fetches is there, or its item fails."""

from __future__ import annotations

import hashlib
import importlib
import io
import sys
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from slurm_worker.errors import AccessDenied, ErrorClass, ServiceError, UserError
from slurm_worker.execution import handler
from slurm_worker.execution.context import Context
from slurm_worker.execution.handler import load
from slurm_worker.node.slurm_job import WorkerExit
from slurm_worker.protocol.job_config import HandlerConfig
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.results.parts import message_of
from slurm_worker.testing import MemoryObjects
from tests.unit.full_disk import full_disk
from tests.unit.world import World, numbered


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that ends the process when it is imported, as some scripts do."""
    (tmp_path / "a_script.py").write_text("import sys\nsys.exit('usage: a_script FILE')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "a_script"
    sys.modules.pop("a_script", None)


def loaded(config: HandlerConfig, scratch: Path) -> object:
    return load(config, MemoryObjects(), JobPaths("lab", "job-1"), scratch)


def test_a_script_that_exits_when_imported_is_the_users_mistake(
    script: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"'a_script' can't be imported .* usage: a_script FILE"):
        loaded(HandlerConfig(f"{script}:handle"), tmp_path)


def test_code_that_was_changed_in_the_bucket_is_refused(tmp_path: Path) -> None:
    objects, paths = MemoryObjects(), JobPaths("lab", "job-1")
    digest = hashlib.sha256(b"what was shipped").hexdigest()
    objects.put(paths.code(digest), b"something else")
    with pytest.raises(UserError, match=r"handler\.code: .* is damaged"):
        load(HandlerConfig("handler:handle", code_sha256=digest), objects, paths, tmp_path)


def test_a_scratch_disk_that_is_full_when_the_code_comes_is_not_the_users_mistake(
    tmp_path: Path,
) -> None:
    objects, paths, data = MemoryObjects(), JobPaths("lab", "job-1"), io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("handler.py", "#" * 10_000)
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    objects.put(paths.code(digest), data.getvalue())
    with full_disk(), pytest.raises(ServiceError, match=r"scratch .*; name another folder with"):
        load(HandlerConfig("handler:handle", code_sha256=digest), objects, paths, tmp_path)


def test_a_plugin_that_can_not_be_loaded_is_the_users_mistake(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("fetch", f"{script}:handle", "slurm_worker.handlers")
    offered = {point.group: [point]}
    monkeypatch.setattr(handler, "entry_points", lambda group: offered.get(group, []))
    with pytest.raises(UserError, match=r"handler.plugin: 'fetch' \(a_script:handle\)"):
        loaded(HandlerConfig("", plugin="fetch"), tmp_path)


def test_a_setup_that_exits_is_the_users_mistake(tmp_path: Path) -> None:
    def setup(_context: Context) -> None:
        raise SystemExit("no licence")

    world = World(tmp_path, setup=setup)
    world.plan(numbered(1))
    with pytest.raises(UserError, match=r"setup\(\) failed: SystemExit: no licence"):
        world.worker().run()


def test_a_bug_is_logged_with_its_place_and_the_first_at_a_place_with_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helper_of_a_bug.py").write_text(
        "import json\n\ndef ratio(n):\n    return 1 / n\n\ndef parse(text):\n"
        "    return json.loads(text)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    helper = importlib.import_module("helper_of_a_bug")

    def handle(item: dict[str, Any], _context: Context) -> dict[str, Any]:
        return {"x": helper.ratio(item["n"] % 2), "y": helper.parse("{" if item["n"] > 2 else "1")}

    world = World(tmp_path / "node", handle, module_file=str(tmp_path / "a_handler.py"))
    world.plan(numbered(4))
    assert world.worker().run() == WorkerExit.OK
    failures = [line for line in world.logger.lines if line["event"] == "item failed"]
    assert failures[0]["error"] == "ZeroDivisionError: division by zero"
    ratio, parse = "helper_of_a_bug.py:4 in ratio", "helper_of_a_bug.py:7 in parse"
    assert [line["place"] for line in failures[:3]] == [ratio, ratio, parse], "not a library's line"
    assert ["exc_info" in line for line in failures] == [True, False, True]
    assert [message_of(line) for line in world.lines("errors")] == [
        (line["error"], line["place"]) for line in failures
    ]


class Closed(MemoryObjects):
    """A store that refuses one object."""

    def download(self, key: str, path: str) -> None:
        if key == "secret":
            raise AccessDenied("s3://lab/secret: 403")
        super().download(key, path)


def test_an_object_that_can_not_be_fetched_fails_only_its_item(tmp_path: Path) -> None:
    def handle(item: dict[str, Any], context: Context) -> dict[str, Any]:
        return {"size": context.fetch(f"s3://lab/{item['file']}").stat().st_size}

    store = Closed()
    store.put("here", b"123")
    world = World(tmp_path, handle, objects=store)
    world.plan([(name, {"file": name}) for name in ("here", "gone", "secret")])
    assert world.worker().run() == WorkerExit.OK
    assert [(line["_key"], line["class"]) for line in world.lines("errors")] == [
        ("gone", ErrorClass.NOT_FOUND.value),
        ("secret", ErrorClass.AUTH.value),
    ]
    assert [row["size"] for row in world.lines("rows")] == [3]


def module_of(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A handler's entry: a module with this text, and its function `run`."""
    (folder / "a_handler.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "a_handler", raising=False)
    importlib.invalidate_caches()
    return "a_handler:run"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("class run: pass", "'a_handler:run' is a class"),
        ("def run(item):\n    yield {}", "'a_handler:run' is a generator function"),
        ("run = 7", "'a_handler:run' is int, not a function"),
        ("def run(item, context, table): return {}", "missing a required argument: 'table'"),
        ("def run(): return {}", "no parameter for the item"),
        ("def run(item): return {}\nasync def setup(context): ...", "setup of .* coroutine"),
        ("def run(item): return {}\ndef setup(context): yield", "setup of .* generator"),
        ("from slurm_worker import batch\n@batch\ndef run(items, context): ...", "@batch.size=100"),
        (
            "from slurm_worker import batch\n@batch(0)\ndef run(items, context): ...",
            "@batch.size=100",
        ),
    ],
)
def test_a_handler_that_can_not_be_called_stops_the_worker_in_one_line(
    text: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = module_of(tmp_path, text, monkeypatch)
    with pytest.raises(UserError, match=says) as raised:
        loaded(HandlerConfig(entry), tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "def run(item, dry_run=False): return {'dry_run': dry_run}",
        "async def run(item, dry_run=False): return {'dry_run': dry_run}",
        """
from slurm_worker import batch
from slurm_worker.results.parts import message_of
@batch(3)
def run(items, dry_run=False):
    return [{'dry_run': dry_run}] * len(items)
""",
        """
class Model:
    async def __call__(self, item, dry_run=False):
        return {'dry_run': dry_run}
run = Model()
""",
    ],
    ids=["plain", "coroutine", "batch", "object"],
)
def test_a_default_of_a_handler_is_never_the_context(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module_of(tmp_path, text, monkeypatch)
    world = World(tmp_path / "node")
    world.handle = importlib.import_module("a_handler").run
    world.plan(numbered(3))
    assert world.worker().run() == WorkerExit.OK
    assert [row["dry_run"] for row in world.lines("rows")] == [False] * 3

"""What the documentation shows is true: its code loads, its YAML is taken, its links lead on."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import yaml

from airflow_slurm_provider.coordinator.config import load_config
from airflow_slurm_provider.coordinator.site import parse_site
from slurm_worker import FatalError, ItemError, RateLimited
from slurm_worker.aggregate.loose import local_sources, merge_files
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.folder import FolderObjects
from tests.stack.settings import ROOT

README = ROOT / "README.md"
PAGES = sorted([README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def named(page: Path, name: str) -> str:
    """The one block that begins with a comment of this file name."""
    (found,) = (
        block for block in blocks(page, r"(?:python|yaml)") if block.splitlines()[0] == f"# {name}"
    )
    return found


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def first_dag(tmp_path: Path) -> Iterator[Path]:
    """The README's three files, as a user would save them."""
    for name in ("handler.py", "config.yaml", "dag.py"):
        (tmp_path / name).write_text(named(README, name))
    yield tmp_path
    sys.modules.pop("docs_dag", None)


def test_the_first_dag_has_its_four_tasks_in_a_row(first_dag: Path) -> None:
    dag = load(first_dag / "dag.py").submit.dag
    assert [task.task_id for task in dag.topological_sort()] == [
        "submit",
        "wait",
        "retry",
        "aggregate",
    ]
    submit = dag.get_task("submit")
    assert load_config(submit.config).spec.job_id == "users-2026"


def test_the_first_dag_fits_in_its_promise_of_about_twenty_lines(first_dag: Path) -> None:
    lines = (first_dag / "dag.py").read_text().splitlines()
    assert len([line for line in lines if line.strip() and not line.startswith("#")]) <= 20


def test_the_readme_is_under_two_screens_to_first_success() -> None:
    before = README.read_text().split("## First DAG")[0]
    assert before.count("\n") <= 2 * 50


def test_site_files_are_taken() -> None:
    sites = [
        document
        for page in PAGES
        for block in blocks(page, "yaml")
        if "storage" in (document := yaml.safe_load(block))
    ]
    assert len(sites) >= 2
    for document in sites:
        parse_site(document, "site.yaml")


def test_the_handler_guide_raises_what_it_says(tmp_path: Path) -> None:
    guide = ROOT / "docs" / "guides" / "handlers.md"
    namespaces = []
    for block in blocks(guide, "python"):
        namespace: dict[str, object] = {}
        exec(compile(block, str(guide), "exec"), namespace)
        namespaces.append(namespace["handle"])
    plain, coroutine, batched, raising = (cast("Callable[..., Any]", each) for each in namespaces)
    item, row = {"sequence": "ACGT"}, {"length": 4}
    assert plain(item, None) == row
    assert asyncio.run(coroutine(item, None)) == row
    assert batched([item, item], None) == [row, row]
    for sequence, expected in (
        ("", ItemError),
        ("slow down", RateLimited),
        ("wrong key", FatalError),
    ):
        with pytest.raises(expected):
            raising({"sequence": sequence}, None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize(
    ("name", "task_id"), [("squares.py", "square"), ("align.py", "align"), ("watched.py", "wait")]
)
def test_the_dags_of_the_airflow_guide_load(name: str, task_id: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(named(ROOT / "docs" / "guides" / "airflow.md", name))
    assert load(path).dag.task_ids == [task_id]


def test_a_dataset_is_read_as_the_guide_says(tmp_path: Path) -> None:
    (snippet,) = (
        block
        for block in blocks(ROOT / "docs" / "guides" / "datasets.md", "python")
        if "read_dataset" in block
    )
    (tmp_path / "reading.py").write_text(snippet)
    (tmp_path / "in.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    merge_files(
        local_sources([tmp_path / "in.jsonl"]),
        FolderObjects(tmp_path / "out"),
        "",
        AggregateOptions(),
        tmp_path,
        lambda _done, _total: None,
    )
    found = load(tmp_path / "reading.py").read_dataset(tmp_path / "out")
    assert found.fetchall() == [(1,), (2,)]

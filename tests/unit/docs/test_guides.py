"""What the README and the guides promise of their code, beside that it runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from airflow_slurm_provider.coordinator.spec.job_spec import load_config
from slurm_worker import FatalError, ItemError, RateLimited
from slurm_worker.aggregate.files.merge import merge_files
from slurm_worker.aggregate.files.sources import Sources
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.backends.local import FolderObjects
from tests.stack.settings import ROOT
from tests.unit.docs.pages import DOCS, README, blocks, load, named

GUIDES = DOCS / "guides"


@pytest.fixture
def first_dag(tmp_path: Path) -> Path:
    """The README's three files, as a user would save them."""
    for name in ("handler.py", "config.yaml", "dag.py"):
        (tmp_path / name).write_text(named(README, name))
    return tmp_path


def test_the_first_dag_has_its_four_tasks_in_a_row(first_dag: Path) -> None:
    dag = load(first_dag / "dag.py").submit.dag
    assert [task.task_id for task in dag.topological_sort()] == [
        "submit",
        "wait",
        "retry",
        "aggregate",
    ]
    submit = dag.get_task("submit")
    assert load_config(submit.config).spec.job_id == "squares"


def test_the_first_dag_fits_in_its_promise_of_about_twenty_lines(first_dag: Path) -> None:
    lines = (first_dag / "dag.py").read_text().splitlines()
    assert len([line for line in lines if line.strip() and not line.startswith("#")]) <= 20


def test_the_readme_is_under_two_screens_to_first_success() -> None:
    before, found, _ = README.read_text().partition("## Install")
    assert found
    assert before.count("\n") <= 2 * 40


def test_the_handler_guide_raises_what_it_says() -> None:
    guide = GUIDES / "handlers.md"
    namespaces = []
    for block in blocks(guide):
        if block.kind == "python":
            namespace: dict[str, object] = {}
            exec(compile(block.text, str(guide), "exec"), namespace)
            namespaces.append(namespace["handle"])
    plain, _, batched, raising = (cast("Callable[..., Any]", each) for each in namespaces)
    item, row = {"sequence": "ACGT"}, {"length": 4}
    assert plain(item, None) == row
    assert batched([item, item], None) == [row, row]
    for sequence, expected in (
        ("", ItemError),
        ("slow down", RateLimited),
        ("wrong key", FatalError),
    ):
        with pytest.raises(expected):
            raising({"sequence": sequence}, None)


@pytest.mark.parametrize(
    ("page", "name", "task_ids"),
    [
        ("guides/airflow.md", "squares.py", ["square"]),
        ("guides/airflow.md", "align.py", ["align"]),
        ("guides/airflow.md", "watched.py", ["wait"]),
        ("tutorial.md", "dag.py", ["submit", "retry", "aggregate"]),
        ("how-to/from-job-arrays.md", "align.py", ["align"]),
        ("how-to/from-submitit.md", "score.py", ["score"]),
        ("how-to/production.md", "nightly.py", ["submit", "wait", "retry", "aggregate"]),
    ],
)
def test_dags_have_the_tasks_that_pages_speak_of(
    page: str, name: str, task_ids: list[str], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(named(DOCS / page, name))
    assert load(path).dag.task_ids == task_ids


def test_a_dataset_is_read_as_the_guide_says(tmp_path: Path) -> None:
    (snippet,) = (
        block.text for block in blocks(GUIDES / "datasets.md") if "read_dataset" in block.text
    )
    (tmp_path / "reading.py").write_text(snippet)
    (tmp_path / "in.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    sources = Sources(tmp_path)
    sources.add_local(tmp_path / "in.jsonl")
    merge_files(
        sources.found,
        FolderObjects(tmp_path / "out"),
        "",
        AggregateOptions(),
        tmp_path,
        lambda _done, _total: None,
    )
    found = load(tmp_path / "reading.py").read_dataset(tmp_path / "out")
    assert found.fetchall() == [(1,), (2,)]


@pytest.mark.parametrize(
    "page",
    [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", DOCS / "architecture.md"],
    ids=lambda page: page.name,
)
def test_files_and_names_that_engineers_are_told_of_are_there(page: Path) -> None:
    files = [
        str(each.relative_to(ROOT))
        for folder in ("airflow_slurm_provider", "worker", "tests", "docs", "benchmarks")
        for each in (ROOT / folder).rglob("*.py")
    ]
    source = "\n".join((ROOT / each).read_text() for each in files)
    spans = re.findall(r"`([^`\n]+)`", page.read_text())
    told = [each for each in spans if re.fullmatch(r"[\w/]+\.py", each)]
    names = [each for each in spans if re.fullmatch(r"[A-Z]\w+", each)]
    assert told or names
    assert [
        each for each in told if not any(f"/{file}".endswith(f"/{each}") for file in files)
    ] == []
    assert [each for each in names if not re.search(rf"\b{each}\b", source)] == []

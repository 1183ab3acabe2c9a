"""Every code block of every page is checked; a kind of block that nobody checks fails.

Python runs, YAML goes through the models that read it, shell commands through the parsers that
they would meet, SQL through DuckDB over data of the right columns, texts are compared with what
the code says. Directives are Sphinx's: it fails on one that is wrong (test_site.py).
"""

from __future__ import annotations

import asyncio
import csv
import inspect
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import hcl2
import jsonschema
import pytest
import yaml

from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec, parse_config
from airflow_slurm_provider.coordinator.spec.site import parse_cluster, parse_site
from slurm_worker.aggregate.job.failures import ERRORS_SCHEMA
from tests.stack.settings import ROOT
from tests.unit.docs import samples
from tests.unit.docs.commands import check_line
from tests.unit.docs.pages import (
    COMMANDS,
    DOCS,
    PAGES,
    Block,
    all_blocks,
    blocks,
    console,
    load,
    save,
)

BLOCKS = all_blocks()
TERRAFORM = DOCS / "infrastructure" / "terraform"
#: Directives in fences; Sphinx runs them.
DIRECTIVES = {"{toctree}", "{include}", "{eval-rst}", "{config-keys}", "{json-document}"}
#: Pages whose console blocks show what is printed, and the test that runs them.
RUN_ELSEWHERE = {
    "README.md": "tests/unit/docs/test_tutorial.py",
    "docs/guides/cli.md": "tests/e2e/test_docs.py",
    "docs/guides/datasets.md": "tests/e2e/test_docs.py",
    "docs/guides/inputs.md": "tests/unit/docs/test_inputs.py",
    "docs/tutorial.md": "tests/unit/docs/test_tutorial.py",
}
#: What a block shows of another tool, for comparison: it is read, and not run.
OTHERS = "# before\n"
_JOB = {
    "job_id": "job-1",
    "input": {"path": "items.csv", "key": "id"},
    "handler": {"entry": "handler:handle"},
}


def check_python(block: Block, folder: Path) -> None:
    if block.text.startswith(OTHERS):
        compile(block.text, str(block), "exec")
        return
    earlier = [each for each in blocks(block.page) if each.line < block.line]
    save(folder, earlier)
    path = folder / (block.name or f"block_{block.line}.py")
    path.write_text(block.text)
    module = load(path)
    for name, value in vars(module).items():
        if name.startswith("test_"):
            value()
    if hasattr(module, "handle"):
        assert len(inspect.signature(module.handle).parameters) == 2, "item, and context"


def check_yaml(block: Block, _folder: Path) -> None:
    document = yaml.safe_load(block.text)
    if "scrape_configs" in document:  # Prometheus's
        assert {each["job_name"] for each in document["scrape_configs"]} == {"slurm-backfills"}
    elif "storage" in document:
        parse_site(document, block.name or "site.yaml")
        jsonschema.validate(document, schema("site"))
    elif {*document} == {"cluster"}:
        parse_cluster(document["cluster"], "site.yaml")
    else:
        assert {*document} & {*JobSpec.model_fields}, "it is neither a job nor a site"
        # Of a job some sections may be shown; what the rest is doesn't matter then.
        job = document if "job_id" in document else {**_JOB, **document}
        parse_config(job, {})
        jsonschema.validate(job, schema("config"))


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "reference" / f"{name}.schema.json").read_text())
    return found


def check_console(block: Block, _folder: Path) -> None:
    typed, shown = console(block)
    assert typed, "a console block shows what is typed: $ …"
    for line in typed:
        check_line(line)
    page = str(block.page.relative_to(ROOT))
    assert not shown or page in RUN_ELSEWHERE, "no test runs it and looks at what is printed"


def check_commands(block: Block, _folder: Path) -> None:
    for line in block.text.splitlines():
        check_line(line.split("  #")[0])


def check_crontab(block: Block, _folder: Path) -> None:
    for line in block.text.splitlines():
        *when, command = line.split(" ", 5)
        assert all(re.fullmatch(r"[\d*/,-]+", each) for each in when)
        check_line(command)


def check_bash(block: Block, _folder: Path) -> None:
    ended = subprocess.run(
        ["bash", "-n"], input=block.text, text=True, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    for command in re.findall(r"slurmctl [^|;\n]+", block.text):
        check_line(command)


def check_sql(block: Block, folder: Path) -> None:
    at = duckdb.connect()
    (folder / "dataset" / "v").mkdir(parents=True)
    (folder / "errors" / "v").mkdir(parents=True)
    at.sql(
        "SELECT 'o' AS city, 1 AS km_to_the_pole, 'UA' AS carrier, 1.5 AS delay, '1' AS _key"
    ).write_parquet(str(folder / "dataset" / "v" / "part-0.parquet"))
    errors = at.from_arrow(ERRORS_SCHEMA.empty_table())
    errors.write_parquet(str(folder / "errors" / "v" / "part-0.parquet"))
    (folder / "users.csv").write_text("user_id\n1\n2\n")
    in_folder = re.sub(r"'([\w*/]+\.(?:parquet|csv))'", rf"'{folder}/\1'", block.text)
    assert in_folder != block.text, "it reads no file"
    at.sql(in_folder).fetchall()


def check_json(block: Block, _folder: Path) -> None:
    document = json.loads(block.text)
    assert document["Version"] == "2012-10-17", "it is no IAM policy"
    for statement in document["Statement"]:
        assert statement["Effect"] in ("Allow", "Deny")
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            assert re.fullmatch(r"(sts|s3|dynamodb):\w+", action)


def check_hcl(block: Block, _folder: Path) -> None:
    """A use of the Terraform module: it gives variables that there are, and all that it must."""
    variables = {
        re.sub('"', "", name): body
        for each in hcl2.loads((TERRAFORM / "variables.tf").read_text())["variable"]
        for name, body in each.items()
    }
    (module,) = hcl2.loads(block.text)["module"]
    (given,) = module.values()
    names = {name for name in given if not name.startswith("__")} - {"source"}
    assert names <= {*variables}
    assert {name for name, body in variables.items() if "default" not in body} <= names
    assert (ROOT / given["source"].strip('"')).resolve() == TERRAFORM


def check_csv(block: Block, _folder: Path) -> None:
    header, *rows = csv.reader(block.text.splitlines())
    assert len({*header}) == len(header)
    assert {len(row) for row in rows} == {len(header)}


def check_mermaid(block: Block, _folder: Path) -> None:
    assert block.text.split()[0] in ("flowchart", "sequenceDiagram", "stateDiagram-v2")
    for opening, closing in ("[]", "()", "{}"):
        assert block.text.count(opening) == block.text.count(closing)


def check_text(block: Block, _folder: Path) -> None:
    if "N(T)" in block.text:
        samples.check_formula(block.text)
    elif "dataset/_manifest.json" in block.text:
        samples.check_layout(block.text)
    elif "slurm_worker (runs on the nodes)" in block.text:
        samples.check_house(block.text)
    elif re.search(r"\w\.py$", block.text, re.MULTILINE):
        samples.check_modules(block.text)
    elif block.page.name != "troubleshooting.md":  # each is provoked: test_troubleshooting.py
        samples.check_sample(block.text)


CHECKS: dict[str, Callable[[Block, Path], None]] = {
    "python": check_python,
    "yaml": check_yaml,
    "console": check_console,
    COMMANDS: check_commands,
    "crontab": check_crontab,
    "bash": check_bash,
    "sql": check_sql,
    "json": check_json,
    "hcl": check_hcl,
    "csv": check_csv,
    "mermaid": check_mermaid,
    "text": check_text,
}


@pytest.mark.parametrize(
    "block", [each for each in BLOCKS if each.kind.split(" ")[0] not in DIRECTIVES], ids=str
)
def test_each_block_is_right(block: Block, tmp_path: Path) -> None:
    assert block.kind in CHECKS, f"{block}: nobody checks blocks of {block.kind!r}"
    CHECKS[block.kind](block, tmp_path)


def test_there_is_no_kind_that_is_checked_and_never_used() -> None:
    assert {*CHECKS} <= {block.kind for block in BLOCKS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    pictures = re.findall(r'\bsrc(?:set)?="([^"]+)"', text)
    targets = [*re.findall(r"\]\(([^)#]+)[^)]*\)", text), *pictures]
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_asynchronous_handlers_of_the_guide_are_coroutines() -> None:
    guide = DOCS / "guides" / "handlers.md"
    (text,) = (each.text for each in blocks(guide) if "async def handle" in each.text)
    namespace: dict[str, Any] = {}
    exec(compile(text, str(guide), "exec"), namespace)
    assert asyncio.run(namespace["handle"]({"sequence": "ACGT"}, None)) == {"length": 4}

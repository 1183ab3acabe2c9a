"""What a node would refuse of a handler's source is refused at submit; no more than that."""

from __future__ import annotations

import ast

import pytest

from airflow_slurm_provider.coordinator.spec.entry_point import check_function
from slurm_worker.errors import UserError


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("class run: pass", "is a class"),
        ("def run(item, context):\n    yield {}", "is a generator function"),
        ("async def run(item, context):\n    yield {}", "is a generator function"),
        ("def run(item):\n    x = yield from item\n    return x", "is a generator function"),
        ("def run(): return {}", "no parameter for the item"),
        ("def run(item, context, table): return {}", "missing a required argument: 'table'"),
        ("def run(item, *, table): return {}", "argument: 'table'"),
        ("def run(context): return {}", "before context"),
        ("@batch(size=3)\ndef run(items, context):\n    yield {}", "is a generator function"),
    ],
)
def test_a_handler_that_cannot_be_called_is_refused(source: str, says: str) -> None:
    with pytest.raises(UserError, match=f"handler.entry: 'h:run' .*{says}"):
        check_function(ast.parse(source), "run", "handler.entry: 'h:run'")


@pytest.mark.parametrize(
    "source",
    [
        "def run(item, context): return {}",
        "def run(item, dry_run=False): return {}",
        "async def run(item, /, *, context): return {}",
        "@batch(size=3)\ndef run(items, context): return items",
        "def run(item):\n    def inner():\n        yield 1\n    return list(inner())",
        "def run(item): return {'x': [(yield_) for yield_ in 'ab'], 'f': lambda: (yield)}",
        "@inject\ndef run(item, table): return {}",
        "@as_list\ndef run(item):\n    yield {}",
        "def run(): return {}\nrun = make()",
        "def run(): return {}\nfrom other import run",
        "def run(): return {}\nfrom other import *",
        "if FAST:\n    def run(): return {}",
        "class Outer:\n    def run(self): yield",
        "run = make()",
        "def run(*everything): return {}",
    ],
)
def test_the_node_checks_what_the_source_does_not_show(source: str) -> None:
    check_function(ast.parse(source), "run", "handler.entry: 'h:run'")

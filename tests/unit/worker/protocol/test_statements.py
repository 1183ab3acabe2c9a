"""Statements: what mypy can't see of them."""

from __future__ import annotations

import re

import pytest

from slurm_worker.protocol.ports import Statement
from tests.unit.worker.protocol.statements import STATEMENTS


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: statement.name)
def test_a_statement_has_exactly_the_values_that_its_texts_use(statement: Statement) -> None:
    # DynamoDB refuses a request with a value too many as well as with one too few.
    used = set(re.findall(r":(\w+)", f"{statement.update} {statement.condition}"))
    assert set(statement.values) == used


def test_each_statement_has_a_name_of_its_own() -> None:
    assert len({statement.name for statement in STATEMENTS}) == len(STATEMENTS) == 36

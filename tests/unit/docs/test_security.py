"""Each promise of the security page has a test that is there."""

from __future__ import annotations

import re

from airflow_slurm_provider.slurm.submission import EXPORTED
from tests.stack.settings import ROOT


def test_each_promise_of_the_security_page_names_a_test_that_exists() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    tables = page.split("| what holds | test |\n| --- | --- |\n")[1:]
    lines = [line for each in tables for line in each.partition("\n\n")[0].splitlines()]
    rows = [line.strip("| ").rpartition(" | ") for line in lines]
    promises = [(row[0], re.findall(r"`(test_\w+)`", row[2])) for row in rows]
    assert (len(tables), len(promises)) >= (2, 17)
    written = "".join(each.read_text() for each in (ROOT / "tests").rglob("test_*.py"))
    for sentence, tests in promises:
        assert tests, sentence
        assert [each for each in tests if f"def {each}(" not in written] == [], sentence


def test_the_page_of_environments_lists_what_a_job_gets() -> None:
    page = (ROOT / "docs" / "how-to" / "environments.md").read_text()
    (listed,) = re.findall(r"these: `([^`]+)`", page)
    assert listed.split() == list(EXPORTED)

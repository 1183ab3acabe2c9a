"""Each sentence about other users of the cluster has a test that is there."""

from __future__ import annotations

import re

from airflow_slurm_provider.slurm.submission import EXPORTED
from tests.stack.settings import ROOT


def test_each_promise_of_the_security_page_names_a_test_that_exists() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    section = page.partition("## Other users of the cluster")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| ")]
    promises = [(row[1].strip(), re.findall(r"`(test_\w+)`", row[2])) for row in rows[2:]]
    assert len(promises) > 10
    written = "".join(each.read_text() for each in (ROOT / "tests").rglob("test_*.py"))
    for sentence, tests in promises:
        assert tests, sentence
        assert [each for each in tests if f"def {each}(" not in written] == [], sentence


def test_the_page_of_environments_lists_what_a_job_gets() -> None:
    page = (ROOT / "docs" / "how-to" / "environments.md").read_text()
    (listed,) = re.findall(r"these: `([^`]+)`", page)
    assert listed.split() == list(EXPORTED)

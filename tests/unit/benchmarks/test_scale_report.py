"""The page on scale is written from the figures, and from nothing else."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from benchmarks import scale_report
from benchmarks.billion.fleet import Scenario
from benchmarks.billion.report import Outcome, simulate

PAGE = "before\n<!-- a: begin -->\nold\n<!-- a: end -->\nafter\n"


def test_a_section_is_replaced_and_the_rest_stays() -> None:
    once = scale_report.written(PAGE, {"a": ["new", r"C:\1"]})
    assert once == "before\n<!-- a: begin -->\n\nnew\nC:\\1\n\n<!-- a: end -->\nafter\n"
    assert scale_report.written(once, {"a": ["new", r"C:\1"]}) == once


def test_a_section_that_the_page_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="no section 'b'"):
        scale_report.written(PAGE, {"b": []})


def test_the_page_has_a_place_for_every_section() -> None:
    outcome = simulate("tiny", Scenario(100, 10, 2, 0.1, 8))
    groups = {key: [outcome] for key in ("sizes", "settings", "preemption")}
    found = scale_report.simulated(groups) | scale_report.sections()
    assert {"sizes", "settings", "preemption", "sources"} <= set(found)
    page = scale_report.written(scale_report.PAGE.read_text(), found)
    assert all(found[name][0] in page for name in found)


def test_an_outcome_is_read_as_it_was_written() -> None:
    outcome = simulate("tiny", Scenario(100, 10, 2, 0.1, 8))
    assert Outcome(**asdict(outcome)) == outcome

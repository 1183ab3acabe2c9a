"""The growth of the coordinator's verbs is measured on a job that is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks import growth
from benchmarks.growth import Cost


def cost(verb: str, items: int, seconds: float, requests: int, peak_mb: float) -> Cost:
    return Cost(verb, items, items // 500, seconds, requests, peak_mb, 100.0)


LINEAR = [cost("submit", 10**6, 10, 1_000, 150), cost("submit", 10**7, 100, 10_000, 155)]


def test_every_verb_is_measured_at_a_small_size() -> None:
    found = growth.grow(2_000, run=growth.measure)
    assert [each.verb for each in found] == list(growth.VERBS)
    assert all(each.requests for each in found if each.verb != "plan")


def test_a_verb_that_grows_faster_than_the_job_is_told() -> None:
    assert growth.too_steep(LINEAR) == []
    steep = [LINEAR[0], replace(LINEAR[1], seconds=300.0)]
    assert growth.too_steep(steep) == ["submit: time grow as n^1.48"]
    large = [LINEAR[0], replace(LINEAR[1], peak_mb=450.0)]
    assert growth.too_steep(large) == ["submit: 300 MB of memory more with ten times the items"]


def test_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    growth.write_csv(LINEAR, tmp_path / "growth.csv")
    assert growth.read_csv(tmp_path / "growth.csv") == LINEAR


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    growth.plot(LINEAR, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")

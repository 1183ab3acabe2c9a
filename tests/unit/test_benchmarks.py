"""The benchmarks run; what they measure is for `make bench`, on a quiet machine."""

from __future__ import annotations

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import engine, guard


def test_a_short_run_prints_a_line_for_each_figure_and_writes_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = benchmarks.RESULTS.read_text(), guard.RATIOS.read_text()
    assert benchmarks.main(["--short", "--only", "claims", "--only", "limits"]) == 0
    printed = capsys.readouterr().out.splitlines()
    head, _, *lines = [line for line in printed if line.startswith("|")]
    assert head == "| what | measured | baseline | ratio | target | |"
    assert [line.split(":")[0].strip("| ") for line in lines] == [
        "claims",
        "busiest shard",
        *["rate limit"] * 4,
    ]
    assert {line.count("|") for line in lines} == {head.count("|")}
    assert (benchmarks.RESULTS.read_text(), guard.RATIOS.read_text()) == before


def test_the_engine_and_its_baseline_do_the_same_items() -> None:
    assert engine.run_worker(engine.noop, 2_000) > 0
    assert engine.plain_loop(2_000) > 0

"""The benchmarks run; what they measure is for `make bench`, on a quiet machine."""

from __future__ import annotations

from benchmarks import __main__ as benchmarks
from benchmarks import engine


def test_the_table_has_a_line_for_each_figure() -> None:
    claims = benchmarks.claim_lines(short=True)
    limits = benchmarks.limiter_lines(short=True)
    assert (len(claims), len(limits)) == (2, 3)


def test_the_engine_and_its_baseline_do_the_same_items() -> None:
    assert engine.run_worker(engine.noop, 2_000) > 0
    assert engine.plain_loop(2_000) > 0

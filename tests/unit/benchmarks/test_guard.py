"""A ratio that has become worse is told, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import guard
from benchmarks.engine import Figure
from benchmarks.guard import Ratio

SPEED = Ratio("engine: no-op", 0.50, at_least=True)
WRITES = Ratio("rate limit: writes", 1.0, at_least=False)


@pytest.mark.parametrize(
    ("committed", "ratio", "told"),
    [
        (SPEED, 0.43, False),
        (SPEED, 0.42, True),
        (SPEED, 5.0, False),
        (WRITES, 1.14, False),
        (WRITES, 1.16, True),
        (WRITES, 0.1, False),
    ],
)
def test_only_a_ratio_worse_than_tolerated_is_told(
    committed: Ratio, ratio: float, told: bool
) -> None:
    measured = [Ratio(committed.name, ratio, committed.at_least)]
    assert bool(guard.worse([committed], measured)) is told


def test_a_line_tells_both_ratios_and_what_is_tolerated() -> None:
    (line,) = guard.worse([SPEED], [Ratio(SPEED.name, 0.4, at_least=True)])
    assert line == "engine: no-op: ratio 0.4, was 0.5: 20% worse, 15% is tolerated"


def test_a_line_may_have_a_tolerance_of_its_own() -> None:
    memory = Ratio("memory: peak", 1.0, at_least=False)
    assert memory.tolerance == 0.1
    assert guard.worse([memory], [Ratio(memory.name, 1.12, at_least=False)])


def test_what_was_nothing_and_is_something_is_worse() -> None:
    none = Ratio("failed", 0.0, at_least=False)
    assert guard.worse([none], [none]) == []
    assert guard.worse([none], [Ratio("failed", 0.01, at_least=False)])


def test_lines_of_one_side_only_are_not_compared() -> None:
    assert guard.worse([SPEED], [WRITES]) == []
    assert guard.left_out([SPEED, WRITES], [WRITES]) == [SPEED.name]


def test_ratios_are_read_as_they_were_written(tmp_path: Path) -> None:
    figure = Figure("memory: peak", "66 MB", "120 MB", 0.55123, 1.0, at_least=False)
    guard.write([figure], tmp_path / "results.json")
    assert guard.read(tmp_path / "results.json") == [Ratio("memory: peak", 0.5512, at_least=False)]


def test_a_run_that_is_worse_ends_with_1_and_one_that_is_not_with_0(
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = Figure(SPEED.name, "1", "2", 0.5, 0.4)
    assert benchmarks.guarded([good], [SPEED]) == 0
    assert capsys.readouterr().out == ""
    assert benchmarks.guarded([replace(good, ratio=0.25)], [SPEED, WRITES]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"not compared: {WRITES.name}",
        f"worse: {SPEED.name}: ratio 0.25, was 0.5: 50% worse, 15% is tolerated",
    ]


def test_small_sizes_are_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        benchmarks.main(["--short", "--guard"])
    assert ended.value.code == 2
    assert "--guard compares ratios at full size" in capsys.readouterr().err


def test_the_committed_ratios_are_those_of_the_committed_table() -> None:
    rows = [line.split("|") for line in benchmarks.RESULTS.read_text().splitlines()]
    table = {row[1].strip(): row[4].strip() for row in rows if len(row) == 8}
    ratios = [each for each in guard.read() if each.name in table]
    assert len(ratios) > 10
    # The table rounds to two places.
    other = [each for each in ratios if abs(float(table[each.name]) - each.ratio) > 0.0101]
    assert other == []

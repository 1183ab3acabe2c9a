"""An aggregation that is killed and started again publishes what an undisturbed one does."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.aggregation import run


def test_a_killed_aggregation_publishes_the_same_when_it_is_started_again(tmp_path: Path) -> None:
    found = run(10, 1, tmp_path)
    assert len(found) == 10
    assert all(each.same for each in found), found
    assert any(each.left for each in found), "none was killed half-way"

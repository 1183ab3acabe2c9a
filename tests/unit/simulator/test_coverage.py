"""What the simulated runs must have met, in how many runs."""

from __future__ import annotations

from collections import Counter

from tests.simulator.coverage import (
    FULL,
    LEAST_APPLIED,
    LEAST_REFUSED,
    TRANSITIONS,
    Coverage,
    statement_names,
)


def enough() -> Coverage:
    names = statement_names()
    return Coverage(
        Counter(dict.fromkeys(names, LEAST_APPLIED)),
        Counter(dict.fromkeys(names, LEAST_REFUSED)),
        Counter(dict.fromkeys(TRANSITIONS, 1)),
    )


def test_a_statement_that_is_seldom_applied_or_refused_is_named() -> None:
    coverage = enough()
    assert coverage.shortfalls(FULL) == []
    coverage.applied["undo claim"] -= 1
    coverage.refused["decide"] = 0
    assert coverage.shortfalls(FULL) == [
        "decide is refused 0 times, of 20",
        "undo claim is applied 199 times, of 200",
    ]


def test_fewer_seeds_need_less() -> None:
    coverage = enough()
    coverage.applied["undo claim"] = 10
    assert coverage.shortfalls(FULL // 5) == []


def test_a_change_of_a_state_that_never_happens_is_named() -> None:
    coverage = enough()
    del coverage.transitions["task", "quarantined", "ready"]
    assert coverage.shortfalls(FULL) == ["task: quarantined to ready never happens"]


def test_a_change_of_a_state_that_the_protocol_does_not_know_is_named() -> None:
    coverage = enough()
    coverage.transitions["task", "done", "ready"] = 1
    assert coverage.shortfalls(FULL) == [
        "task: done to ready is not a change that the protocol allows"
    ]

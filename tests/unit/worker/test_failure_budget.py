"""Failures in a row are tolerated up to a number, and a success starts the count again."""

from __future__ import annotations

from slurm_worker.failure_budget import FailureBudget


def test_one_failure_more_than_allowed_is_too_many() -> None:
    budget = FailureBudget(3)
    assert [budget.allow() for _ in range(4)] == [True, True, True, False]


def test_only_failures_in_a_row_count() -> None:
    budget = FailureBudget(1)
    for _ in range(10):
        assert budget.allow()
        budget.reset()
    assert budget.failures == 0


def test_failures_that_do_not_count_are_always_allowed_and_hide_no_others() -> None:
    budget = FailureBudget(2)
    for _ in range(2):
        assert budget.allow()
        assert all(budget.allow(counts=False) for _ in range(50))
    assert budget.failures == 102
    assert not budget.allow()

"""The cost of coordination is counted as the sources say, and ours as the coordinator counts it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_slurm_provider.coordinator.costs.prices import (
    merging_bill,
    planning_bill,
    working_bill,
)
from benchmarks import cost
from benchmarks.cost import Shape


def test_ours_is_the_coordinators_own_bill() -> None:
    shape = Shape(items=10_000, bundle=100, item_s=0.3, workers=5)
    bills = planning_bill(100, 10_000) + working_bill(100, 5, busy_s=3_000) + merging_bill(100)
    assert cost.ours(shape) == bills.dollars


def test_a_standard_child_is_two_transitions_and_a_put() -> None:
    shape = Shape(bundle=1_000)
    assert cost.map_standard(shape) == pytest.approx(2_001 * 0.000025 + 1_000 * 0.000005)


def test_an_express_child_is_billed_by_started_steps_of_a_tenth_of_a_second() -> None:
    shape = Shape(items=1, bundle=1, item_s=0.06)
    at_once = cost.map_express(shape)
    assert at_once == cost.map_express(replace(shape, item_s=0.1))
    # 64 MB for a tenth of a second more, at six cents a GB-hour.
    step = 0.1 / 16 * 0.06 / 3_600
    assert cost.map_express(replace(shape, item_s=0.11)) == pytest.approx((at_once or 0) + step)


def test_an_express_child_of_six_seconds_is_sixty_steps() -> None:
    shape = Shape(items=100, bundle=100, item_s=0.06)
    expected = 2 * 0.000025 + 0.000001 + 6 / 16 * 0.06 / 3_600 + 0.000005
    assert cost.map_express(shape) == pytest.approx(expected)


def test_an_express_child_that_would_not_end_in_time_has_no_price() -> None:
    assert cost.map_express(Shape(bundle=1_000, item_s=0.3)) is not None
    assert cost.map_express(Shape(bundle=1_000, item_s=0.31)) is None


def test_batch_costs_its_childrens_requests_and_splits_at_its_limit() -> None:
    shape = Shape(bundle=100)
    assert cost.batch_arrays(shape) == pytest.approx(10_000 * (0.000005 + 0.0000004))
    assert cost.arrays(shape) == 1
    assert cost.arrays(replace(shape, bundle=99)) == 2


@pytest.mark.parametrize("bundle", cost.BUNDLES)
def test_the_page_says_truly_which_way_costs_less(bundle: int) -> None:
    shape = Shape(bundle=bundle)
    express = cost.map_express(shape)
    assert express is not None
    assert cost.batch_arrays(shape) < cost.ours(shape) < min(cost.map_standard(shape), express)


def test_standard_children_cost_less_than_express_ones_where_bundles_take_long() -> None:
    small, large = Shape(bundle=100), Shape(bundle=1_000)
    assert cost.map_standard(small) > (cost.map_express(small) or 0)
    assert cost.map_standard(large) < (cost.map_express(large) or 0)


def test_the_table_has_a_line_for_each_way_and_a_column_for_each_bundle() -> None:
    head, _, *lines = cost.table()
    assert [line.count("|") for line in [head, *lines]] == [len(cost.BUNDLES) + 2] * (
        len(lines) + 1
    )
    assert [line.split(" | ")[0].strip("| ") for line in lines[:-1]] == list(cost.WAYS)

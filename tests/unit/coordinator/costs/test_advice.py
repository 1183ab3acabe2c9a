"""Advice names numbers, is given where something is to be gained, and else not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_slurm_provider.coordinator.costs.advice import JobProfile, advise
from airflow_slurm_provider.slurm.accounting import Efficiency

MB = 1 << 20
GOOD_USE = Efficiency(4, 0, 40_000, 40_000, 36_000.0, 1000 * MB, 700 * MB)
GOOD = JobProfile(
    tasks=100,
    items=50_000,
    bundle=500,
    workers=4,
    calls=1,
    median_s=240.0,
    slow_s=400.0,
    span_s=6000.0,
    failed={"bad_input": 5_000},
    efficiency=GOOD_USE,
)


def only(facts: JobProfile) -> str:
    (sentence,) = advise(facts)
    return sentence


def test_a_job_that_is_set_up_well_gets_no_advice() -> None:
    assert advise(GOOD) == []
    assert advise(replace(GOOD, efficiency=None)) == []


def test_short_tasks_should_be_larger_but_enough_for_all_workers() -> None:
    advice = only(replace(GOOD, median_s=3.0))
    assert "half of the tasks took under 3 s, at 500 items each" in advice
    assert "bundle: 3100 " in advice, "50,000 items leave four tasks for each of four workers"
    assert advise(replace(GOOD, median_s=3.0, workers=25)) == [], "there are no more items"
    assert advise(replace(GOOD, median_s=3.0, tasks=5)) == [], "too few to tell"


def test_long_tasks_should_be_smaller() -> None:
    assert "bundle: 37 instead of 500" in only(replace(GOOD, median_s=4000.0, slow_s=9000.0))


def test_unused_memory_should_not_be_requested() -> None:
    advice = only(replace(GOOD, efficiency=replace(GOOD_USE, mem=4000 * MB, max_rss=500 * MB)))
    assert (
        "3.9 GiB of memory were requested for each worker, and at most 500.0 MiB (12%) used"
        in advice
    )
    assert "slurm.mem: 650M would be enough" in advice
    small = replace(GOOD_USE, mem=300 * MB, max_rss=100 * MB)
    assert advise(replace(GOOD, efficiency=small)) == [], "there is little to save"


def test_more_memory_is_advised_when_it_is_nearly_used_up() -> None:
    advice = only(replace(GOOD, efficiency=replace(GOOD_USE, max_rss=950 * MB)))
    assert "slurm.mem: 1235M leaves room" in advice


def test_memory_that_slurm_did_not_sample_gives_no_advice() -> None:
    assert advise(replace(GOOD, efficiency=replace(GOOD_USE, max_rss=0))) == []
    assert advise(replace(GOOD, efficiency=replace(GOOD_USE, mem=0))) == []


def test_idle_cpus_are_reported_unless_the_job_has_a_limit() -> None:
    idle = replace(GOOD, efficiency=replace(GOOD_USE, used_s=2000.0))
    assert "5% of 11.1 allocated CPU-hours were used" in only(idle)
    assert advise(replace(idle, limits={"api": 10.0})) == []


@pytest.mark.parametrize("rate", [8.4, 9.0])
def test_a_fully_used_limit_is_reported_with_the_workers_that_are_enough(rate: float) -> None:
    advice = only(replace(GOOD, limits={"api": rate}, calls=2))
    assert f"limit 'api' of {rate:g}/s is fully used (8.33 items/s)" in advice
    assert "5 for calls of 1 s; the job had 4" in advice


def test_an_unused_limit_is_reported_with_the_workers_that_would_use_it() -> None:
    advice = only(replace(GOOD, limits={"api": 100.0}))
    assert "4 items at a time gave 8.33 items/s" in advice
    assert "48 workers" in advice


def test_lost_leases_and_transient_failures_are_reported() -> None:
    assert "20 leases were lost over 100 tasks" in only(replace(GOOD, lost=20))
    assert advise(replace(GOOD, lost=2)) == []
    advice = only(replace(GOOD, failed={"network": 2_000}))
    assert "2,000 items (4.0%) failed as network" in advice
    assert "slurmctl retry --errors=network" in advice
    assert "lower the limit's rate" in only(replace(GOOD, failed={"rate_limited": 9_000}))

"""What Slurm's accounting says of CPU time and memory, in the forms of several releases."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_slurm_provider.slurm.states import ElementState
from airflow_slurm_provider.slurm.usage import Usage, efficiency_of, parse_usage

RECORDED = Path(__file__).with_name("recorded")
TEXT = """\
12_0|COMPLETED|00:10:00|2|12:30.500|400M|
12_0.batch|COMPLETED|00:10:00|2|00:00.500||4000K
12_0.extern|COMPLETED|00:10:00|2|00:00:00||
12_0.0|COMPLETED|00:10:00|2|12:30.000||150M
12_1|REQUEUED|00:01:00|1|00:30.000|400M|
12_1|NODE_FAIL|1-00:00:00|1|1-02:03:04|400M|
12_1.0|CANCELLED|1-00:00:00|1|1-02:03:04||1.50G
12_2|RUNNING|00:05:00|4|00:00:00|1Gc|
12_3|COMPLETED|00:00:10|1|00:01.000|400Mn|
12_[4-9%2]|PENDING|00:00:00|2|00:00:00|400M|
12_4|PENDING|00:00:00|0|00:00:00|400M|
12|PENDING|00:00:00|2|00:00:00|400M|
not a line
"""


def test_each_start_has_its_cpu_time_and_the_memory_of_its_largest_step() -> None:
    found = {(each.element, each.restart): each for each in parse_usage(TEXT)}
    assert found[0, 0] == Usage(
        array="12",
        element=0,
        restart=0,
        state=ElementState.COMPLETED,
        elapsed_s=600,
        cpus=2,
        cpu_s=750.5,
        mem=400 << 20,
        max_rss=150 << 20,
    )
    assert found[1, 1].cpu_s == ((24 + 2) * 60 + 3) * 60 + 4
    assert found[1, 1].max_rss == int(1.5 * 2**30)
    assert found[2, 0].mem == 4 << 30, "a gigabyte for each of its four CPUs"
    assert found[3, 0].mem == 400 << 20
    assert {element for element, _ in found} == {0, 1, 2, 3}, "the others wait"


def test_what_a_running_worker_uses_is_not_taken_for_nothing() -> None:
    found = efficiency_of(parse_usage(TEXT))
    ended = 600 * 2 + 60 + 86_400 + 10
    assert (found.starts, found.running) == (5, 1)
    assert found.allocated_s == ended + 300 * 4
    assert found.cpu_share == pytest.approx((750.5 + 30 + 93_784 + 1) / ended)
    running = efficiency_of(each for each in parse_usage(TEXT) if not each.ended)
    assert (running.cpu_share, running.memory_share) == (None, None)


def test_nothing_is_made_of_nothing() -> None:
    found = efficiency_of(parse_usage(""))
    assert (found.starts, found.cpu_share, found.memory_share) == (0, None, None)
    assert found.to_dict()["cpu_efficiency"] is None


def test_the_accounting_of_a_real_cluster_is_understood() -> None:
    found = parse_usage((RECORDED / "22.05" / "usage").read_text())
    states = {(each.element, each.restart): each.state for each in found}
    assert states[0, 0] is ElementState.COMPLETED
    sleeper = max(found, key=lambda each: each.elapsed_s)
    assert sleeper.elapsed_s >= 60
    assert 0 < sleeper.max_rss < sleeper.mem
    assert 0 < efficiency_of(found).used_s < efficiency_of(found).ended_s

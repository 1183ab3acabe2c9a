"""The records of Slurm's accounting, in the forms of several releases."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_slurm_provider.slurm.accounting import JobRecord, efficiency_of, parse_records
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.errors import ErrorClass
from tests.unit.slurm.records import completed

RECORDED = Path(__file__).with_name("recorded")
ENDING_FIELDS = [
    "JobID",
    "State",
    "ExitCode",
    "NodeList",
    "Elapsed",
    "MaxRSS",
    "ReqMem",
    "AllocCPUS",
]
USAGE_FIELDS = ["JobID", "State", "Elapsed", "AllocCPUS", "TotalCPU", "ReqMem", "MaxRSS"]
TEXT = """\
12_0|COMPLETED|0:0|n1|00:01:00||400M|2
12_0.batch|COMPLETED|0:0|n1|00:01:00|4000K|400M|2
12_1|OUT_OF_MEMORY|0:125|n1|00:02:05||400M|2
12_1.batch|COMPLETED|0:0|n1|00:02:05|5M|400M|2
12_1.0|OUT_OF_MEMORY|0:125|n1|00:02:05|1.50G|400M|2
12_2|REQUEUED|0:0|n1|00:00:10||400M|2
12_2|NODE_FAIL|0:0|n2|00:00:20||400M|2
12_2|COMPLETED|0:0|n3|00:00:30||400M|2
12_3|FAILED|9:0|n1|1-00:00:01||400M|2
12_3.0|OUT_OF_MEMORY|0:125|n1|1-00:00:01|700M|400M|2
12_4|TIMEOUT|0:15|n1|00:30:00||400M|2
12_5|CANCELLED by 1001|0:15|n1|00:00:01||400M|2
12_6|FAILED|75:0|n4|00:00:01||400M|2
12_7|FAILED|3:0|n4|00:00:01||400M|2
12_8|FAILED|0:9|n4|00:00:01||400M|2
12_10|FAILED|9:0|n4|00:00:28||400Mn|1
12_10.0|CANCELLED by 0|0:9|n4|00:00:28|1008896K||1
12_11|FAILED|9:0|n4|00:00:28||1Gc|2
12_11.0|CANCELLED by 0|0:9|n4|00:00:28|1008896K||1
12_9|RUNNING|0:0|n4|00:00:01||400M|2
12_[10-12%2]|PENDING|0:0|None assigned|00:00:00||400M|2
not a line
"""


def test_each_failed_record_has_its_class_node_memory_and_time() -> None:
    records = parse_records(TEXT, ENDING_FIELDS)
    found = {(record.element, record.restart): record for record in records if record.ended}
    classes = {which: record.error_class for which, record in found.items() if record.error_class}
    assert classes == {
        (1, 0): ErrorClass.OUT_OF_MEMORY,
        (2, 0): ErrorClass.PREEMPTED,
        (2, 1): ErrorClass.NODE_FAILURE,
        (3, 0): ErrorClass.OUT_OF_MEMORY,
        (4, 0): ErrorClass.WALLTIME,
        (5, 0): ErrorClass.CANCELLED,
        (6, 0): ErrorClass.NODE_FAILURE,
        (7, 0): ErrorClass.HANDLER_BUG,
        (8, 0): ErrorClass.WORKER_CRASH,
        (10, 0): ErrorClass.OUT_OF_MEMORY,
        (11, 0): ErrorClass.WORKER_CRASH,
    }
    assert (9, 0) not in found, "it has not ended"
    oom = found[1, 0]
    assert (oom.node, oom.elapsed_s, oom.max_rss) == ("n1", 125, int(1.5 * 2**30))
    assert found[3, 0].elapsed_s == 86_401


def test_each_start_of_an_element_has_its_own_worker_name() -> None:
    workers = [
        record.worker for record in parse_records(TEXT, ENDING_FIELDS) if record.element == 2
    ]
    assert workers == ["12_2-r0-", "12_2-r1-", "12_2-r2-"]


USAGE_TEXT = """\
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


def usage(text: str) -> list[JobRecord]:
    return [record for record in parse_records(text, USAGE_FIELDS) if record.started]


def test_each_start_has_its_cpu_time_and_the_memory_of_its_largest_step() -> None:
    found = {(record.element, record.restart): record for record in usage(USAGE_TEXT)}
    assert found[0, 0] == completed(
        "12", elapsed_s=600, cpus=2, cpu_s=750.5, mem=400 << 20, max_rss=150 << 20
    )
    assert found[1, 1].cpu_s == ((24 + 2) * 60 + 3) * 60 + 4
    assert found[1, 1].max_rss == int(1.5 * 2**30)
    assert found[2, 0].mem == 4 << 30, "a gigabyte for each of its four CPUs"
    assert found[3, 0].mem == 400 << 20
    assert {element for element, _ in found} == {0, 1, 2, 3}, "the others wait"


def test_starts_that_still_run_do_not_lower_the_efficiency() -> None:
    found = efficiency_of(usage(USAGE_TEXT))
    ended = 600 * 2 + 60 + 86_400 + 10
    assert (found.starts, found.running) == (5, 1)
    assert found.allocated_s == ended + 300 * 4
    assert found.cpu_share == pytest.approx((750.5 + 30 + 93_784 + 1) / ended)
    running = efficiency_of(record for record in usage(USAGE_TEXT) if not record.ended)
    assert (running.cpu_share, running.memory_share) == (None, None)


def test_the_efficiency_of_no_records_is_unknown() -> None:
    found = efficiency_of([])
    assert (found.starts, found.cpu_share, found.memory_share) == (0, None, None)
    assert found.to_dict()["cpu_efficiency"] is None


def test_the_accounting_of_a_real_cluster_is_understood() -> None:
    found = usage((RECORDED / "22.05" / "usage").read_text())
    states = {(record.element, record.restart): record.state for record in found}
    assert states[0, 0] is ElementState.COMPLETED
    sleeper = max(found, key=lambda record: record.elapsed_s)
    assert sleeper.elapsed_s >= 60
    assert 0 < sleeper.max_rss < sleeper.mem
    assert 0 < efficiency_of(found).used_s < efficiency_of(found).ended_s

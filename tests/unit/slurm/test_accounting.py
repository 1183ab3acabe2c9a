"""What the accounting says of workers that died, start by start."""

from __future__ import annotations

from airflow_slurm_provider.slurm.accounting import parse_endings
from slurm_worker.errors import ErrorClass

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


def test_each_death_has_its_class_node_memory_and_time() -> None:
    found = {(each.element, each.restart): each for each in parse_endings(TEXT)}
    classes = {which: each.error_class for which, each in found.items() if each.error_class}
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


def test_a_worker_is_told_from_its_requeued_twin() -> None:
    workers = [each.worker for each in parse_endings(TEXT) if each.element == 2]
    assert workers == ["12_2-r0-", "12_2-r1-", "12_2-r2-"]

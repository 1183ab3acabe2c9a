"""A wait reports what is new: rate, deaths and their reasons. It replaces workers that left."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator import watcher as watcher_module
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.dead_workers import (
    WorkerFailure,
    attribute_failures,
    find_worker_failures,
)
from airflow_slurm_provider.coordinator.status.logs import first_failures, last_words
from airflow_slurm_provider.coordinator.status.progress import current_arrays, read_progress
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.coordinator.watcher import Watcher
from airflow_slurm_provider.slurm.accounting import JobRecord
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.errors import ErrorClass, ItemError, ServiceError
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import Claimed
from tests.unit.coordinator.fakes import FakeArray, FakeSlurm, make_config, services, world_of


def submitted(folder: Path, slurm: FakeSlurm, **changes: object) -> tuple[Services, str]:
    edges = services(slurm)
    config = make_config(folder / "job", **changes)
    api.submit(edges, config, log=lambda _: None)
    return edges, config.spec.id


def test_gone_workers_are_replaced_up_to_the_bound(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, job_id = submitted(tmp_path, slurm)
    slurm.state = FakeArray(alive=0)
    lines: list[str] = []
    watcher = Watcher(edges, edges.jobs(job_id).job, lines.append, max_resubmissions=2)
    polls = [watcher.poll() for _ in range(4)]
    assert [bool(poll.problem) for poll in polls] == [False, False, True, True]
    assert len(slurm.arrays) == 3
    assert any("no worker of array 100 is left" in line for line in lines)


def test_workers_that_somebody_cancelled_are_not_replaced(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, job_id = submitted(tmp_path, slurm)
    edges.clock.sleep(1)
    job = edges.jobs(job_id).job  # type: ignore[arg-type]  # a plain string will do
    control.cancel(edges, job, actor="me")
    slurm.state = FakeArray(alive=0)
    lines: list[str] = []
    seen = Watcher(edges, job, lines.append, max_resubmissions=2).poll()
    assert seen.problem.endswith(f"me cancelled the workers; to continue: slurmctl resume {job}")
    assert len(slurm.arrays) == 1
    assert "the workers were cancelled by me; they are not replaced" in lines


def die(edges: Services, owner: str, times: int) -> None:
    """Let the first task's lease be lost by workers of this name."""
    clock = edges.clock
    job_id = edges.jobs("job-1").job  # type: ignore[arg-type]  # a plain string will do
    row = edges.jobs(job_id).get()
    lease = LeaseConfig(max_lost=1)
    table = TaskTable(edges.rows, job_id, row.shards, lease, clock)
    (first,) = [
        task for shard in range(row.shards) for task in table.all_rows(shard) if not task.sequence
    ]
    assert isinstance(table.claim(first, f"{owner}aaaa"), Claimed)
    for _ in range(times):
        clock.sleep(1000)
        (first,) = [
            task
            for shard in range(row.shards)
            for task in table.all_rows(shard)
            if not task.sequence
        ]
        table.steal(first, f"{owner}bbbb")


def test_a_task_whose_workers_died_gets_the_error_class_of_slurms_state(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, job_id = submitted(tmp_path, slurm, items=5, bundle=1)
    slurm.ended = [
        JobRecord("100", 2, 0, ElementState.OUT_OF_MEMORY, "0:125", "n7", 65, 512 * 2**20)
    ]
    die(edges, "100_2-r0-", 1)
    before = read_progress(edges, job_id)
    assert before.task_errors == {"worker_crash": 1}
    (loss,) = find_worker_failures(edges, job_id)
    assert loss.line() == (
        "worker 100_2 (start 1) on n7: out_of_memory (OUT_OF_MEMORY, exit 0:125, after 65 s, "
        "512.0 MiB); held 000-00000000"
    )
    assert attribute_failures(edges, job_id) == 1
    assert attribute_failures(edges, job_id) == 0, "once"
    assert read_progress(edges, job_id).task_errors == {"out_of_memory": 1}


def test_a_dead_worker_is_logged_with_a_task_that_another_worker_has_now(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, job_id = submitted(tmp_path, slurm, items=5, bundle=1)
    row = edges.jobs(job_id).get()
    table = TaskTable(edges.rows, job_id, row.shards, LeaseConfig(), edges.clock)
    (first,) = [task for shard in range(row.shards) for task in table.all_rows(shard)][:1]
    assert isinstance(table.claim(first, "100_2-r0-aaaa"), Claimed)
    edges.clock.sleep(1000)
    held = table.find(first.task)
    assert held is not None
    taken = table.steal(held, "100_3-r0-bbbb")
    assert isinstance(taken, Claimed)
    table.release(taken.lease)
    slurm.ended = [JobRecord("100", 2, 0, ElementState.NODE_FAIL, "0:0", "n7", 65, 0)]
    (loss,) = find_worker_failures(edges, job_id)
    assert loss.tasks == (first.task,), "the row is ready again, and its history names the dead"


def test_each_dead_worker_is_logged_once(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, job_id = submitted(tmp_path, slurm)
    lines: list[str] = []
    watcher = Watcher(edges, job_id, lines.append)
    watcher.poll()
    slurm.ended = [JobRecord("100", 1, 0, ElementState.TIMEOUT, "0:15", "n1", 60, 0)]
    slurm.state = FakeArray(alive=1, dead={"walltime": 1})
    watcher.poll()
    slurm.ended.append(JobRecord("100", 2, 0, ElementState.TIMEOUT, "0:15", "n1", 60, 0))
    slurm.state = FakeArray(alive=0, dead={"walltime": 2})
    for _ in range(3):
        watcher.poll()
    assert [line[:12] for line in lines if "walltime (TIMEOUT" in line] == [
        "worker 100_1",
        "worker 100_2",
    ]
    assert watcher.lost == {"walltime": 2}


def test_a_dead_worker_is_logged_by_the_next_poll_if_the_table_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = FakeSlurm()
    edges, job_id = submitted(tmp_path, slurm)
    slurm.ended = [JobRecord("100", 1, 0, ElementState.TIMEOUT, "0:15", "n1", 60, 0)]
    slurm.state = FakeArray(alive=1, dead={"walltime": 1})
    lines: list[str] = []
    watcher = Watcher(edges, job_id, lines.append)

    def away(*_: object) -> list[WorkerFailure]:
        raise ServiceError("the table is away")

    with monkeypatch.context() as patch:
        patch.setattr(watcher_module, "find_worker_failures", away)
        watcher.poll()
    watcher.poll()
    assert watcher.lost == {"walltime": 1}, lines


def test_dead_workers_of_earlier_arrays_are_logged_in_one_line(
    tmp_path: Path,
) -> None:
    slurm = FakeSlurm()
    edges, job_id = submitted(tmp_path, slurm)
    slurm.state = FakeArray(alive=0)
    api.submit(edges, make_config(tmp_path / "job"), log=lambda _: None)
    assert len(slurm.arrays) == 2
    slurm.ended = [
        JobRecord("100", 0, 0, ElementState.FAILED, "2:0", "n1", 60, 0),
        JobRecord("100", 1, 0, ElementState.FAILED, "2:0", "n1", 60, 0),
        JobRecord("101", 1, 0, ElementState.TIMEOUT, "0:15", "n1", 60, 0),
    ]
    slurm.state = FakeArray(alive=1, dead={"walltime": 1})
    lines: list[str] = []
    watcher = Watcher(edges, job_id, lines.append)
    watcher.poll()
    told = [line for line in lines if "worker" in line]
    assert told[0] == (
        f"2 workers of earlier arrays had died (worker_crash 2); slurmctl status {job_id} "
        "lists them"
    )
    assert [line.startswith("worker 101_1 ") for line in told[1:]] == [True]
    assert watcher.lost == {"worker_crash": 2, "walltime": 1}


def test_last_lines_that_two_dead_workers_share_are_logged_once(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, job_id = submitted(tmp_path, slurm)
    slurm.words = (
        '{"event": "the worker can\'t continue"}\nslurm-worker: handler.entry: correct it\n'
    )
    slurm.ended = [
        JobRecord("100", element, 0, ElementState.FAILED, "2:0", "n1", 60, 0) for element in (0, 1)
    ]
    slurm.state = FakeArray(alive=0, dead={"worker_crash": 2})
    lines: list[str] = []
    Watcher(edges, job_id, lines.append).poll()
    assert [line.strip() for line in lines if line.startswith("  100_")] == [
        "100_0: slurm-worker: handler.entry: correct it",
        "100_1: the same",
    ]


def test_the_last_lines_of_a_worker_leave_out_its_log_and_what_came_before() -> None:
    log_line = '{"event": "worker ends", "level": "info"}'
    said = "slurm-worker: no space is left\nslurm-worker: name another with TMPDIR"
    output = f"loading modules\n{log_line}\n{said}\n{log_line}\nslurmstepd: error: TIME LIMIT\n"
    assert last_words(output) == f"{said}\nslurmstepd: error: TIME LIMIT"
    assert last_words(f"{log_line}\nKilled\n") == " INFO     worker ends\nKilled"


def test_a_submission_that_was_never_made_does_not_replace_the_arrays_before_it(
    tmp_path: Path,
) -> None:
    edges, job_id = submitted(tmp_path, FakeSlurm())
    jobs = edges.jobs(job_id)
    jobs.record_intent(0, 2, 3, 1001)
    assert current_arrays(jobs.submissions()) == {"100"}


def failed(number: int, error_class: str, error: str) -> dict[str, object]:
    """A line of a worker's log."""
    level = {"event": "item failed", "level": "warning"}
    return {**level, "item": f"k{number}", "error_class": error_class, "error": error}


def test_the_first_failures_are_logged_when_the_job_ends(tmp_path: Path) -> None:
    edges = services(FakeSlurm())
    config = make_config(tmp_path / "job", items=10, bundle=10)
    api.submit(edges, config, log=lambda _: None)

    def handle(item: dict[str, int], _context: object) -> dict[str, int]:
        raise ItemError("bad_input", f"no {item['n']}")

    world_of(edges, config, tmp_path / "w", handle).worker().run()
    chunk = [
        {"event": "worker started", "level": "info"},
        *(failed(n, "bad_input", f"{n} is not good") for n in range(8)),
        {**failed(8, "handler_bug", "ZeroDivisionError"), "exception": "Traceback:\n  at line 3"},
    ]
    job_id = config.spec.id
    text = "\n".join(map(json.dumps, chunk))
    edges.objects.put(edges.paths(job_id).log("000-1", "w", 0), gzip.compress(text.encode()))
    lines: list[str] = []
    Watcher(edges, job_id, lines.append).poll()
    told = [line for line in lines if "item failed" in line]
    assert [f'item="{key}"' in line for key, line in zip(["k0", "k8"], told, strict=True)] == [
        True,
        True,
    ], "one of each kind"
    assert told[1].splitlines()[1:] == ["    Traceback:", "      at line 3"]
    assert f"the first failures (all: slurmctl logs {job_id} --errors):" in lines
    edges.jobs(job_id).create_round(1, "retry")
    assert first_failures(edges, job_id) == [], "those of round 0 are being tried again"


def test_a_worker_that_ended_well_is_not_reported_as_dead(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, job_id = submitted(tmp_path, slurm)
    slurm.ended = [JobRecord("100", 0, 0, ElementState.COMPLETED, "0:0", "n1", 60, 0)]
    assert find_worker_failures(edges, job_id) == []
    assert ErrorClass.WORKER_CRASH.value not in read_progress(edges, job_id).task_errors

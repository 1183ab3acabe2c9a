"""Submit, retry, cancel: safe to call again at any point, by several at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config
from airflow_slurm_provider.coordinator.status.progress import read_progress, read_status
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.slurm.array_state import ArrayKey
from airflow_slurm_provider.slurm.client import SubmitRefusedError
from airflow_slurm_provider.slurm.queries import VANISHED_AFTER_S
from slurm_worker.errors import ErrorClass, ItemError, ServiceError, UserError
from slurm_worker.protocol.job_config import JobConfig
from slurm_worker.protocol.keys import JobId, TaskState
from slurm_worker.protocol.ports import Applied, Refused, Row
from slurm_worker.testing import MemoryObjects, MemoryRows
from tests.unit.coordinator.fakes import FakeArray, FakeSlurm, make_config, services, world_of


def log(_line: str) -> None:
    pass


def submit(edges: Services, config: Config) -> api.SubmitResult:
    return api.submit(edges, config, log=log)


def run_workers(edges: Services, config: Config, folder: Path, handle: Any) -> None:
    world_of(edges, config, folder, handle).worker().run()


def failing(*classes: str):  # type: ignore[no-untyped-def]
    """A handler whose item n fails with the n-th class; the others succeed."""

    def handle(item: dict[str, Any], _context: object) -> dict[str, Any]:
        if item["n"] < len(classes):
            raise ItemError(classes[item["n"]], "as asked")
        return {"n": item["n"]}

    return handle


def test_submitting_twice_gives_one_array_and_the_same_plan(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, config = services(slurm), make_config(tmp_path)
    first, second = submit(edges, config), submit(edges, config)
    assert len(slurm.arrays) == 1
    assert (first.tasks, first.items, first.workers) == (10, 50, 3)
    assert second.reattached
    assert second.slurm_job_ids == first.slurm_job_ids


def test_submitting_again_reports_a_changed_configuration(tmp_path: Path) -> None:
    edges, config = services(), make_config(tmp_path)
    lines: list[str] = []
    api.submit(edges, config, log=lines.append)
    api.submit(edges, config, log=lines.append)
    assert not any("worker count changed" in line for line in lines)
    (tmp_path / "handler.py").write_text("def handle(item, context):\n    return None\n")
    api.submit(edges, config, log=lines.append)
    assert any("code, settings or worker count changed" in line for line in lines)


def test_submitting_a_finished_job_again_says_that_all_tasks_have_ended(tmp_path: Path) -> None:
    edges, config = services(), make_config(tmp_path / "config")
    submit(edges, config)
    run_workers(edges, config, tmp_path / "node", failing())
    lines: list[str] = []
    api.submit(edges, config, log=lines.append)
    assert lines == ["all tasks have ended; no workers are needed"]


def test_submitting_a_finished_job_again_names_the_retry_command(tmp_path: Path) -> None:
    edges, config = services(), make_config(tmp_path / "config")
    submit(edges, config)
    run_workers(edges, config, tmp_path / "node", failing("bad_input"))
    lines: list[str] = []
    api.submit(edges, config, log=lines.append)
    assert lines[0].endswith("to retry what failed: slurmctl retry job-1 --errors=bad_input")


def test_a_changed_input_is_reported_and_the_job_keeps_its_items(
    tmp_path: Path,
) -> None:
    edges, config = services(), make_config(tmp_path, items=20)
    lines: list[str] = []
    api.submit(edges, config, log=lines.append)
    api.submit(edges, config, log=lines.append)
    assert not any("has changed" in line for line in lines)
    make_config(tmp_path, items=30)
    again = api.submit(edges, config, log=lines.append)
    assert any("keeps the 20 items that it had then" in line for line in lines)
    assert again.items == 20


def test_a_handler_with_a_syntax_error_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    edges, config = services(), make_config(tmp_path)
    (tmp_path / "handler.py").write_text("x = 1\ndef handle(item, context)\n    return None\n")
    with pytest.raises(UserError, match=r"handler.py, line 2: .*; correct it"):
        submit(edges, config)
    assert edges.jobs(config.spec.id).find() is None


def test_an_array_whose_reply_was_lost_is_found_again(tmp_path: Path) -> None:
    slurm = FakeSlurm(lose_reply=True)
    edges, config = services(slurm), make_config(tmp_path)
    with pytest.raises(ServiceError):
        submit(edges, config)
    assert submit(edges, config).slurm_job_ids == ("100",)
    assert len(slurm.arrays) == 1


def test_workers_are_submitted_again_if_they_ended_and_left_tasks(
    tmp_path: Path,
) -> None:
    slurm = FakeSlurm()
    edges, config = services(slurm), make_config(tmp_path)
    first = submit(edges, config)
    slurm.state = FakeArray(alive=0)
    second = submit(edges, config)
    assert second.slurm_job_ids != first.slurm_job_ids
    run_workers(edges, config, tmp_path / "w", failing())
    assert submit(edges, config).reattached, "a complete job needs no workers"


def test_an_array_that_slurm_does_not_know_yet_counts_as_alive(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, config = services(slurm), make_config(tmp_path)
    submit(edges, config)
    slurm.state = FakeArray(alive=0, unknown=True)
    assert submit(edges, config).reattached


def test_one_command_replaces_workers_that_slurm_has_forgotten(tmp_path: Path) -> None:
    """Each command is a process of its own, and can't know for how long they are missing."""
    slurm = FakeSlurm()
    edges, config = services(slurm), make_config(tmp_path)
    first = submit(edges, config)
    ended = edges.clock.boot_time() + VANISHED_AFTER_S

    def array(_key: ArrayKey) -> FakeArray:
        return FakeArray(alive=0, unknown=edges.clock.boot_time() < ended)

    with mock.patch.object(slurm, "array", array):
        assert submit(edges, config).slurm_job_ids != first.slurm_job_ids


def test_the_store_is_tested_for_conditional_put_once_in_a_process(tmp_path: Path) -> None:
    keys: list[str] = []

    class Counting(MemoryObjects):
        def put_new(self, key: str, body: bytes) -> bool:
            keys.append(key)
            return super().put_new(key, body)

    edges = replace(services(), objects=Counting())
    submit(edges, make_config(tmp_path / "a"))
    submit(edges, make_config(tmp_path / "b", job_id="job-2"))
    assert keys.count("lab/conditional-put") == 2, "the first process of a site needs two requests"
    submit(replace(edges, conditional={}), make_config(tmp_path / "c", job_id="job-3"))
    assert keys.count("lab/conditional-put") == 3, "and each later process one"


def test_a_probe_that_somebody_deletes_does_not_make_a_good_store_a_bad_one(tmp_path: Path) -> None:
    class Swept(MemoryObjects):
        swept = False

        def put_new(self, key: str, body: bytes) -> bool:
            made = super().put_new(key, body)
            if made and not self.swept:
                self.swept = True
                self.delete(key)
            return made

    assert replace(services(), objects=Swept()).conditional_put()


def test_a_store_that_ignores_conditions_is_detected(tmp_path: Path) -> None:
    class Ignorant(MemoryObjects):
        def put_new(self, key: str, body: bytes) -> bool:
            self.put(key, body)
            return True

    edges, config = replace(services(), objects=Ignorant()), make_config(tmp_path)
    assert (edges.conditional_put(), services().conditional_put()) == (False, True)
    submit(edges, config)
    digest = edges.jobs(config.spec.id).get().config
    document = edges.objects.get(edges.paths(config.spec.id).config(digest)) or b""
    assert not JobConfig.from_json(document).conditional_put


def test_a_corrected_submit_works_after_a_refused_array(
    tmp_path: Path,
) -> None:
    slurm = FakeSlurm(refuse=SubmitRefusedError("slurm.partition: 'nope' is not there"))
    edges, config = services(slurm), make_config(tmp_path)
    with pytest.raises(UserError, match="partition"):
        submit(edges, config)
    slurm.refuse = None
    assert not submit(edges, config).reattached
    assert len(slurm.arrays) == 1


def test_duplicate_keys_are_refused_and_nothing_stays_behind(tmp_path: Path) -> None:
    edges, config = services(), make_config(tmp_path)
    items = tmp_path / "items.jsonl"
    good = items.read_text()
    items.write_text(good + '{"id": "k7", "n": 7}\n')
    with pytest.raises(UserError, match="'k7'"):
        submit(edges, config)
    assert edges.jobs(config.spec.id).find() is None
    assert list(edges.objects.list(edges.paths(config.spec.id).segments(0))) == []
    items.write_text(good)
    assert submit(edges, config).items == 50


class DyingRows(MemoryRows):
    """A table whose writer dies after so many task rows."""

    left = 4

    def put_new(self, row: Row) -> Applied | Refused:
        if "#TASK#" in str(row["pk"]):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        return super().put_new(row)


def test_an_input_that_breaks_after_planning_does_not_affect_the_job(
    tmp_path: Path,
) -> None:
    rows = DyingRows()
    edges, config = replace(services(), rows=rows), make_config(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        submit(edges, config)
    rows.left = 1_000
    items = tmp_path / "items.jsonl"
    items.write_text(items.read_text() + "{broken\n")
    lines: list[str] = []
    assert api.submit(edges, config, log=lines.append).items == 50
    assert any("keeps the 50 items that it had then" in line for line in lines)


def test_another_input_under_the_same_job_id_is_refused(tmp_path: Path) -> None:
    edges = services()
    submit(edges, make_config(tmp_path))
    with pytest.raises(UserError, match="exists with another input"):
        submit(edges, make_config(tmp_path / "another"))


def test_progress_counts_every_item_once_through_retries(tmp_path: Path) -> None:
    edges, config = services(), make_config(tmp_path)
    submit(edges, config)
    handle = failing("network", "network", "bad_input", "timeout")
    run_workers(edges, config, tmp_path / "w0", handle)
    before = read_progress(edges, config.spec.id)
    assert (before.items, before.ok, before.pending) == (50, 46, 0)
    assert before.failed == {"network": 2, "bad_input": 1, "timeout": 1}

    result = api.retry(edges, config.spec.id, ["network"], log=log)
    assert (result.round, result.items, result.given_up) == (
        1,
        {"network": 2},
        {"bad_input": 1, "timeout": 1},
    )
    between = read_progress(edges, config.spec.id)
    assert (between.pending, between.failed) == (2, {"bad_input": 1, "timeout": 1})

    run_workers(edges, config, tmp_path / "w1", failing("network"))
    after = read_progress(edges, config.spec.id)
    assert after.complete
    assert (after.ok, after.pending) == (47, 0)
    assert after.failed == {"bad_input": 1, "timeout": 1, "network": 1}


def test_a_retry_takes_only_items_whose_latest_outcome_failed(tmp_path: Path) -> None:
    edges, config = services(), make_config(tmp_path)
    submit(edges, config)
    run_workers(edges, config, tmp_path / "w0", failing("network", "network", "timeout"))
    api.retry(edges, config.spec.id, ["network"], log=log)
    run_workers(edges, config, tmp_path / "w1", failing("network"))
    result = api.retry(edges, config.spec.id, ["network", "timeout"], log=log)
    assert result.items == {"network": 1, "timeout": 1}
    run_workers(edges, config, tmp_path / "w2", failing())
    assert read_progress(edges, config.spec.id).ok == 50
    assert api.retry(edges, config.spec.id, log=log).round is None


def test_the_policy_never_retries_what_cannot_succeed(tmp_path: Path) -> None:
    edges, config = services(), make_config(tmp_path)
    submit(edges, config)
    run_workers(edges, config, tmp_path / "w", failing("bad_input", "auth", "handler_bug"))
    result = api.retry(edges, config.spec.id, log=log)
    assert result.round is None
    assert result.given_up == {"bad_input": 1, "auth": 1, "handler_bug": 1}


def test_the_policy_ends_after_its_rounds(tmp_path: Path) -> None:
    edges = services()
    config = make_config(tmp_path, retry={"network": {"rounds": 1}})
    submit(edges, config)
    run_workers(edges, config, tmp_path / "w0", failing("network"))
    assert api.retry(edges, config.spec.id, log=log).round == 1
    run_workers(edges, config, tmp_path / "w1", failing("network"))
    assert api.retry(edges, config.spec.id, log=log).round is None


def test_retrying_again_while_a_round_runs_makes_no_second_round(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, config = services(slurm), make_config(tmp_path)
    submit(edges, config)
    run_workers(edges, config, tmp_path / "w", failing("network"))
    first = api.retry(edges, config.spec.id, ["network"], log=log)
    second = api.retry(edges, config.spec.id, ["network"], log=log)
    assert (first.round, second.round, second.reattached) == (1, 1, True)
    assert len(slurm.arrays) == 2


def test_a_retry_killed_before_its_array_is_finished_by_the_next(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, config = services(slurm), make_config(tmp_path)
    submit(edges, config)
    run_workers(edges, config, tmp_path / "w", failing("network", "timeout"))
    slurm.refuse = ServiceError("ssh is down")
    with pytest.raises(ServiceError):
        api.retry(edges, config.spec.id, ["network"], log=log)
    slurm.refuse = None
    result = api.retry(edges, config.spec.id, ["timeout"], log=log)
    assert (result.round, result.items) == (1, {"network": 1}), "the round begun is finished"
    assert len(edges.jobs(config.spec.id).rounds()) == 2


def test_failed_tasks_go_back_with_the_retry(tmp_path: Path) -> None:
    edges, config = services(), make_config(tmp_path, items=10)
    submit(edges, config)
    world = world_of(edges, config, tmp_path / "w", failing())
    for _ in range(world.lease.max_tries):
        world.clock.advance(100)
        claimed = world.table.claim(world.task_rows()[0], "broken-node")
        world.table.fail(claimed.lease, ErrorClass.NODE_FAILURE, "disk full", 0)  # type: ignore[union-attr]
    world.worker().run()
    assert read_progress(edges, config.spec.id).task_errors == {"node_failure": 1}
    result = api.retry(edges, config.spec.id, log=log)
    assert (result.tasks, result.items) == (1, {})
    world.worker().run()
    assert {row.state for row in world.task_rows()} == {TaskState.DONE}
    assert read_progress(edges, config.spec.id).ok == 10


def test_a_running_job_is_not_retried(tmp_path: Path) -> None:
    edges, config = services(), make_config(tmp_path)
    submit(edges, config)
    with pytest.raises(UserError, match="10 unfinished tasks"):
        api.retry(edges, config.spec.id, log=log)


def test_an_unknown_error_class_is_named(tmp_path: Path) -> None:
    edges, config = services(), make_config(tmp_path)
    submit(edges, config)
    with pytest.raises(UserError, match="'netwrok' is not an error class; use network"):
        api.retry(edges, config.spec.id, ["netwrok"], log=log)


def test_an_unknown_job_is_named() -> None:
    with pytest.raises(UserError, match="no job 'nope'"):
        read_progress(services(), JobId("nope"))


def test_a_poll_reports_an_interrupted_submit(tmp_path: Path) -> None:
    edges, config = (
        services(FakeSlurm(refuse=ServiceError("connection lost"))),
        make_config(tmp_path),
    )
    with pytest.raises(ServiceError):
        submit(edges, config)
    assert read_status(edges, config.spec.id).problem == "", "its submitter may still be at it"
    edges.clock.sleep(3600)
    assert "no array was submitted" in read_status(edges, config.spec.id).problem


def test_a_poll_reports_that_no_worker_is_left(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, config = services(slurm), make_config(tmp_path)
    submit(edges, config)
    assert read_status(edges, config.spec.id).problem == ""
    slurm.state = FakeArray(alive=0)
    assert "no worker of array 100 is left" in read_status(edges, config.spec.id).problem
    run_workers(edges, config, tmp_path / "w", failing())
    assert read_status(edges, config.spec.id).finished


def test_a_cancel_ends_the_arrays_that_may_still_run(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, config = services(slurm), make_config(tmp_path)
    submit(edges, config)
    assert control.cancel(edges, config.spec.id) == ["100"]
    slurm.state = FakeArray(alive=0)
    assert control.cancel(edges, config.spec.id) == []


def test_the_audit_log_has_all_actions(tmp_path: Path) -> None:
    edges, config = services(), make_config(tmp_path)
    submit(edges, config)
    run_workers(edges, config, tmp_path / "w", failing("network"))
    edges.clock.advance(1)  # type: ignore[attr-defined]
    api.retry(edges, config.spec.id, log=log, actor="dag run")
    events = [(event.actor, event.action) for event in edges.jobs(config.spec.id).events()]
    assert sorted(set(events)) == [
        ("dag run", "retried"),
        ("dag run", "submitted"),
        ("slurmctl", "planned"),
        ("slurmctl", "submitted"),
    ]


def test_no_secret_is_in_the_script_the_config_or_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-value")
    slurm = FakeSlurm()
    edges, config = services(slurm), make_config(tmp_path)
    submit(edges, config)
    everything = "".join(slurm.scripts) + repr(edges.rows.__dict__) + repr(edges.objects.__dict__)
    assert "s3cr3t-value" not in everything


def quarantined(edges: Services, config: Config, folder: Path) -> Any:
    """A world whose first task was given up after its workers died."""
    world = world_of(edges, config, folder, failing())
    row = next(task for task in world.task_rows() if task.state is not TaskState.DONE)
    for _ in range(world.lease.max_tries):
        world.clock.advance(100)
        (row,) = [task for task in world.task_rows() if task.task == row.task]
        claimed = world.table.claim(row, "broken-node")
        world.table.fail(claimed.lease, ErrorClass.OUT_OF_MEMORY, "killed", 0)
    return world


def test_tasks_that_ran_out_of_memory_get_more_and_no_others_run_again(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, config = services(slurm), make_config(tmp_path, items=10, slurm={"mem": "500M"})
    submit(edges, config)
    world = quarantined(edges, config, tmp_path / "w")
    world.worker().run()
    done = {row.task: row.attempt for row in world.task_rows() if row.state is TaskState.DONE}
    plan = api.plan_retry(edges, config.spec.id)
    assert (plan.round, plan.tasks, plan.resources.slurm) == (
        1,
        {"out_of_memory": 1},
        {"mem": "1000M"},
    )
    assert api.retry(edges, config.spec.id, log=log).tasks == 1
    assert "#SBATCH --mem=1000M" in slurm.scripts[-1]
    world.worker().run()
    after = {row.task: row.attempt for row in world.task_rows()}
    assert {task: after[task] for task in done} == done


def test_a_task_that_fails_again_and_again_is_given_up_after_its_rounds(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, config = services(slurm), make_config(tmp_path, items=5, slurm={"mem": "500M"})
    submit(edges, config)
    memory = []
    for _ in range(5):
        quarantined(edges, config, tmp_path / "w")
        if api.retry(edges, config.spec.id, log=log).round is None:
            break
        memory.append(edges.jobs(config.spec.id).rounds()[-1].slurm["mem"])
    assert memory == ["1000M", "2000M"]


def test_new_workers_of_a_round_have_its_resources_and_do_not_wait_again(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    rules = {"network": {"backoff": "40s", "mem": "x2"}}
    edges, config = services(slurm), make_config(tmp_path, slurm={"mem": "1G"}, retry=rules)
    submit(edges, config)
    run_workers(edges, config, tmp_path / "w", failing("network"))
    lines: list[str] = []
    api.retry(edges, config.spec.id, log=lines.append)
    assert "the workers start in 40 s (backoff)" in lines
    assert "#SBATCH --mem=2048M" in slurm.scripts[-1]
    assert "#SBATCH --begin=now+40" in slurm.scripts[-1]
    slurm.state = FakeArray(alive=0)
    api.resubmit(edges, config.spec.id, max_resubmits=3, log=log)
    assert len(slurm.scripts) == 3
    assert "#SBATCH --mem=2048M" in slurm.scripts[-1]
    assert "--begin" not in slurm.scripts[-1]


def test_only_the_requested_items_run_again(tmp_path: Path) -> None:
    edges, config = services(FakeSlurm()), make_config(tmp_path)
    submit(edges, config)
    run_workers(edges, config, tmp_path / "w", failing("network", "network", "bad_input"))
    lines: list[str] = []
    result = api.retry(
        edges, config.spec.id, ["network"], only=["k1", "k2", "k9", "k10"], log=lines.append
    )
    assert (result.items, result.given_up) == ({"network": 1}, {"bad_input": 1})
    assert "2 of the requested items have not failed" in lines
    ran: list[int] = []

    def handle(item: dict[str, Any], _context: object) -> dict[str, Any]:
        ran.append(item["n"])
        return item

    run_workers(edges, config, tmp_path / "w1", handle)
    assert ran == [1]


def test_an_interrupted_retry_of_named_items_is_finished_with_the_same_items(
    tmp_path: Path,
) -> None:
    slurm = FakeSlurm()
    edges, config = services(slurm), make_config(tmp_path)
    submit(edges, config)
    run_workers(edges, config, tmp_path / "w", failing("network", "network"))
    slurm.refuse = ServiceError("ssh is down")
    with pytest.raises(ServiceError):
        api.retry(edges, config.spec.id, only=["k1"], log=log)
    slurm.refuse = None
    assert api.retry(edges, config.spec.id, log=log).items == {"network": 1}


def test_a_round_of_more_items_than_the_budget_is_not_started(tmp_path: Path) -> None:
    edges, config = services(FakeSlurm()), make_config(tmp_path)
    submit(edges, config)
    run_workers(edges, config, tmp_path / "w", failing("network", "network", "bad_input"))
    result = api.retry(edges, config.spec.id, max_items=1, log=log)
    assert (result.round, result.given_up) == (None, {"network": 2, "bad_input": 1})
    assert api.retry(edges, config.spec.id, max_items=2, log=log).round == 1


def test_the_plan_of_a_retry_writes_nothing(tmp_path: Path) -> None:
    edges, config = services(FakeSlurm()), make_config(tmp_path)
    submit(edges, config)
    run_workers(edges, config, tmp_path / "w", failing("network"))
    plan = api.plan_retry(edges, config.spec.id)
    assert (plan.round, plan.items, plan.resources.delay_s) == (1, {"network": 1}, 30)
    assert len(edges.jobs(config.spec.id).rounds()) == 1

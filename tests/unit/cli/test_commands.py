"""What each command does, prints and ends with, on a real coordinator in memory."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_slurm_provider.cli.app import ExitCode
from airflow_slurm_provider.cli.rendering.fields import failure_fields
from airflow_slurm_provider.cli.wait_loop import TOLERATED_FAILURES
from airflow_slurm_provider.coordinator.status.failures import FailureGroup
from airflow_slurm_provider.slurm.accounting import JobRecord
from airflow_slurm_provider.slurm.array_state import ArrayState, Element
from airflow_slurm_provider.slurm.states import ElementState
from tests.unit.cli.conftest import ITEMS, Cli, Handler

STATUS_NAMES = {
    "job_id", "state", "stop", "paused", "rounds", "tasks", "task_errors", "items", "ok", "failed",
    "pending", "rows", "complete", "problem", "workers", "lost_workers", "dataset",
}  # fmt: skip


def test_submit_reports_what_it_started(cli: Cli) -> None:
    ended = cli.submit()
    assert ended.code == ExitCode.OK
    assert ended.fields["job"] == "job-1"
    assert ended.fields["items in"] == str(ITEMS)
    assert ended.fields["planned tasks"] == "3"
    assert ended.fields["slurm job"].startswith("101 job-1.000-1.")
    assert "planned 25 items as 3 tasks" in ended.err


def test_submit_again_starts_nothing_twice(cli: Cli) -> None:
    first, second = cli.submit("--json"), cli.submit("--json")
    assert second.code == ExitCode.OK
    assert second.json == {**first.json, "reattached": True}
    assert len(cli.slurm.names) == 1


def test_json_is_one_document_and_the_rest_is_on_stderr(cli: Cli) -> None:
    ended = cli.submit("--json")
    assert ended.json["slurm_job_ids"] == ["101"]
    assert ended.err


def test_job_id_of_the_command_line_wins(cli: Cli) -> None:
    assert cli.submit("--job-id", "other", "--json").json["job_id"] == "other"


def test_status_while_workers_run(cli: Cli) -> None:
    cli.submit()
    ended = cli("status", "job-1")
    assert ended.code == ExitCode.OK
    assert ended.fields["tasks"] == "3 ready"
    assert ended.fields["pending"] == str(ITEMS)
    assert ended.fields["workers"] == "2 alive of array 101 (2 RUNNING)"
    assert ended.fields["dataset"] == "not published"


def test_status_names_are_stable(cli: Cli) -> None:
    cli.submit()
    found = cli("status", "job-1", "--json").json
    assert set(found) == STATUS_NAMES
    assert found["workers"] == {
        "slurm_job_ids": ["101"], "alive": 2, "states": {"RUNNING": 2}, "known": True,
    }  # fmt: skip


def test_status_reports_everything_else_when_the_cluster_is_away(cli: Cli) -> None:
    cli.submit()
    cli.slurm.away = 1
    ended = cli("status", "job-1")
    assert ended.code == ExitCode.SERVICE_ERROR
    assert ended.fields["items in"] == str(ITEMS)
    assert ended.fields["workers"].startswith("unknown")
    assert ended.err == "slurmctl: the login node is away\n"


def test_status_reports_which_workers_died_and_why(cli: Cli) -> None:
    cli.submit()
    cli.slurm.ended = [JobRecord("101", 1, 0, ElementState.OUT_OF_MEMORY, "0:125", "n7", 65, 2**29)]
    ended = cli("status", "job-1")
    assert ended.fields["workers lost"] == "1 (out_of_memory 1)"
    assert "worker 101_1 (start 1) on n7: out_of_memory" in ended.out
    (lost,) = cli("status", "job-1", "--json").json["lost_workers"]
    assert (lost["error_class"], lost["node"], lost["max_rss"]) == ("out_of_memory", "n7", 2**29)


EXPIRED = JobRecord("101", 1, 0, ElementState.FAILED, "77:0", "n7", 65)


def test_a_worker_whose_credentials_had_expired_is_named_in_status_with_what_to_do(
    cli: Cli,
) -> None:
    cli.submit()
    cli.slurm.ended = [EXPIRED]
    elements = {0: Element(ElementState.COMPLETED, "0:0"), 1: Element(ElementState.FAILED, "77:0")}
    cli.slurm.arrays["101"] = ArrayState("101", elements)
    ended = cli("status", "job-1")
    assert "1 worker ended because AWS credentials on the node" in ended.fields["problem"]
    assert ended.fields["workers lost"] == "1 (node_failure 1)"
    assert "renew them and submit the job again" in ended.out
    (lost,) = cli("status", "job-1", "--json").json["lost_workers"]
    assert lost["reason"].startswith("AWS credentials on the node were missing or had expired; ")


def test_the_log_of_errors_names_workers_that_could_ship_none(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "slurm-worker: s3://lab/x: the AWS credentials have expired (ExpiredToken); renew them"
    monkeypatch.setattr(type(cli.slurm), "output", lambda *_: f"starting\n{words}\n")
    cli.submit()
    clock = replace(EXPIRED, element=0, exit_code="78:0")
    cli.slurm.ended = [EXPIRED, clock, replace(EXPIRED, exit_code="75:0")]
    first, second = cli("logs", "job-1", "--errors").out.splitlines()
    assert first.split()[0] == "ERROR"
    assert "101_1-r0 worker ended" in first
    assert "the AWS credentials have expired (ExpiredToken); renew them" in first
    assert "the node's clock was wrong" in second
    assert "101_1-r0" in cli("logs", "job-1", "--errors", "--worker", "101_1").out
    assert "101_0-r0" not in cli("logs", "job-1", "--errors", "--worker", "101_1").out
    assert cli("logs", "job-1").out == ""
    logged = json.dumps({"level": "warning", "event": "a service failed", "error": "it expired"})
    monkeypatch.setattr(type(cli.slurm), "output", lambda *_: f"{logged}\nexit\n")
    assert 'error="it expired"' in cli("logs", "job-1", "--errors").out
    cli.slurm.away = 1
    away = cli("logs", "job-1", "--errors")
    assert (away.code, away.out) == (ExitCode.OK, "")
    assert "how the workers ended is not known" in away.err


def test_wait_until_all_tasks_have_ended(cli: Cli) -> None:
    cli.submit()
    cli.clock.events = [lambda: None, cli.work]
    ended = cli("wait", "job-1")
    assert ended.code == ExitCode.OK, "failed items alone don't fail the job"
    assert ended.fields["ok"] == str(ITEMS - 2)
    assert ended.fields["failed"] == "2 (bad_input 1, network 1)"
    assert cli.clock.slept[:2] == [1.0, 1.5]


def test_submit_and_wait_in_one(cli: Cli) -> None:
    cli.clock.events = [cli.work]
    ended = cli.submit("--wait", "--json")
    assert ended.code == ExitCode.OK
    assert ended.json["slurm_job_ids"] == ["101"]
    assert ended.json["progress"]["complete"] is True


def test_wait_ends_when_no_worker_is_left(cli: Cli) -> None:
    cli.submit()
    cli.clock.events = [lambda: cli.slurm.end("101", "NODE_FAIL")]
    ended = cli("wait", "job-1")
    assert ended.code == ExitCode.JOB_FAILED
    assert "2 NODE_FAIL" in ended.fields["problem"]


def test_wait_gives_up_after_its_time(cli: Cli) -> None:
    cli.submit()
    ended = cli("wait", "job-1", "--timeout", "60", "--interval", "7")
    assert ended.code == ExitCode.SERVICE_ERROR
    assert "not finished after 60 s" in ended.err
    assert max(cli.clock.slept) == 7
    assert sum(cli.clock.slept) <= 60


def test_wait_tolerates_a_cluster_that_is_away_for_a_while(cli: Cli) -> None:
    cli.submit()

    def leave() -> None:
        cli.slurm.away = TOLERATED_FAILURES

    cli.clock.events = [leave, *[lambda: None] * (TOLERATED_FAILURES - 1), cli.work]
    ended = cli("wait", "job-1")
    assert ended.code == ExitCode.OK
    assert ended.err.count("the login node is away; next try") == TOLERATED_FAILURES


def test_wait_stops_at_once_when_the_first_query_fails(cli: Cli) -> None:
    cli.submit()
    cli.slurm.away = 1
    assert cli("wait", "job-1").code == ExitCode.SERVICE_ERROR
    assert cli.clock.slept == []


def test_retry_runs_the_named_classes_again(cli: Cli, handler: Handler) -> None:
    cli.submit()
    cli.work()
    handler.cured = True
    cli.clock.events = [cli.work]
    ended = cli("retry", "--job-id", "job-1", "--errors=network,timeout", "--wait", "--json")
    assert ended.code == ExitCode.OK
    assert ended.json["round"] == 1
    assert ended.json["items"] == {"network": 1}
    assert ended.json["given_up"] == {"bad_input": 1}
    assert ended.json["progress"]["failed"] == {"bad_input": 1}


def test_a_dry_run_reports_the_same_and_changes_nothing(cli: Cli) -> None:
    cli.submit()
    cli.work()
    before = cli("status", "job-1", "--json").json
    told = cli("retry", "--job-id", "job-1", "--errors=network", "--dry-run", "--json").json
    assert cli("status", "job-1", "--json").json == before
    assert len(cli.slurm.names) == 1
    done = cli("retry", "--job-id", "job-1", "--errors=network", "--json").json
    assert told["dry_run"]
    assert (told["round"], told["items"]) == (done["round"], done["items"])
    assert (told["given_up"], told["delay_s"]) == (done["given_up"], 30)


def test_retry_takes_a_list_of_items(cli: Cli, tmp_path: Path) -> None:
    cli.submit()
    cli.work()
    keys = tmp_path / "keys.txt"
    (failed,) = cli("errors", "job-1", "--class", "network", "--json").json["groups"]
    keys.write_text(f"{failed['examples'][0]['key']}\nnobody\n")
    told = cli("retry", "job-1", "--items", str(keys), "--dry-run", "--json").json
    assert (told["items"], told["missing"]) == ({"network": 1}, 1)


def test_a_line_of_a_list_of_items_is_one_key_whatever_it_holds(cli: Cli, tmp_path: Path) -> None:
    cli.submit()
    cli.work()
    keys = tmp_path / "keys.txt"
    keys.write_text("\ufeffk2\u2028k3\u0085k4\u000bk5\n", "utf-8")
    told = cli("retry", "job-1", "--items", str(keys), "--dry-run", "--json").json
    assert (told["items"], told["missing"]) == ({}, 1)


def test_errors_groups_failures_and_names_the_command_that_retries_them(cli: Cli) -> None:
    cli.submit()
    cli.work()
    ended = cli("errors", "job-1")
    assert ended.code == 0
    assert "slurmctl retry job-1 --errors=network" in ended.out
    groups = cli("errors", "job-1", "--json").json["groups"]
    counts = {group["error_class"]: group["count"] for group in groups}
    assert counts == cli("status", "job-1", "--json").json["failed"]


def test_errors_that_were_all_tried_again_have_no_examples(cli: Cli, handler: Handler) -> None:
    cli.submit()
    cli.work()
    handler.cured = True
    cli("retry", "job-1", "--errors=network")
    cli.work()
    ended = cli("errors", "job-1")
    assert "network: none left; 1 item retried: connection reset" in ended.out.splitlines()
    assert "k2" not in ended.out


def test_errors_that_happened_again_are_counted_apart_from_the_earlier_ones(cli: Cli) -> None:
    cli.submit()
    cli.work()
    cli("retry", "job-1", "--errors=network")
    cli.work()
    line = "network: 1 item (1 earlier failure retried): connection reset"
    assert line in cli("errors", "job-1").out.splitlines()
    assert cli("status", "job-1").fields["rounds"] == "2 (0 to 1)"


def test_items_of_other_classes_than_the_given_ones_are_not_selected(cli: Cli) -> None:
    cli.submit()
    cli.work()
    for planned in (["--dry-run"], []):
        by_class = cli("retry", "job-1", "--errors=network", *planned).fields
        assert by_class["not selected"] == "1 (bad_input 1)"
        assert "given up" not in by_class


def test_the_retry_of_a_handler_bug_names_the_submit_before_it() -> None:
    groups = [FailureGroup("item", "handler_bug", "KeyError", count=2)]
    command = dict(failure_fields("job-1", groups))["retry handler_bug"]
    assert "run slurmctl submit CONFIG, then slurmctl retry job-1" in command


def test_logs_without_lines_say_what_an_id_looks_like(cli: Cli) -> None:
    cli.submit()
    cli.work()
    ended = cli("logs", "job-1", "--task", "5")
    assert (ended.code, ended.out) == (ExitCode.OK, "")
    assert "task '5'; ids look like 000-00000005" in ended.err
    assert "worker '99_1'; ids look like 1234_7" in cli("logs", "job-1", "--worker", "99_1").err


def test_errors_of_a_job_without_failures_names_the_command_for_dead_workers(cli: Cli) -> None:
    cli.submit()
    assert "slurmctl status job-1" in cli("errors", "job-1").out


def test_a_paused_job_is_not_retried_and_what_resumes_it_is_named(cli: Cli) -> None:
    cli.submit()
    cli("pause", "job-1")
    ended = cli("retry", "job-1")
    assert ended.code == ExitCode.USER_ERROR
    assert ended.err.rstrip().endswith("resume it first: slurmctl resume job-1")


def test_more_failed_items_than_max_failed_items_fail_a_wait(cli: Cli) -> None:
    cli.submit()
    cli.work()
    assert cli("wait", "job-1", "--max-failed-items", "2").code == ExitCode.OK
    ended = cli("wait", "job-1", "--max-failed-items", "1")
    assert ended.code == ExitCode.JOB_FAILED
    assert "--max-failed-items: 2 items failed; the limit is 1" in ended.err


def test_a_retry_that_gives_all_items_up_names_the_command_that_runs_them_again(
    cli: Cli, handler: Handler
) -> None:
    cli.submit()
    cli.work()
    handler.cured = True
    cli("retry", "job-1")
    cli.work()
    note = cli("retry", "job-1").fields["note"]
    assert note.endswith("slurmctl retry job-1 --errors=bad_input")


def test_nothing_to_retry_is_not_an_error(cli: Cli, handler: Handler) -> None:
    cli.submit()
    cli.work()
    ended = cli("retry", "--job-id", "job-1", "--errors=timeout", "--wait")
    assert ended.code == ExitCode.OK
    assert ended.fields["round"] == "nothing to run again"
    assert len(cli.slurm.names) == 1


def test_aggregate_publishes_and_status_shows_it(cli: Cli) -> None:
    cli.submit()
    cli.work()
    first, second = cli("aggregate", "job-1", "--json"), cli("aggregate", "job-1", "--json")
    assert first.code == ExitCode.OK
    assert first.json["rows"] == ITEMS - 2
    assert second.json == first.json
    dataset = "23 rows in 1 file, s3://bucket/lab/jobs/job-1/dataset/_manifest.json"
    assert cli("status", "job-1").fields["dataset"] == dataset


def test_aggregate_refuses_while_tasks_remain(cli: Cli) -> None:
    cli.submit()
    ended = cli("aggregate", "job-1")
    assert ended.code == ExitCode.USER_ERROR
    assert "3 unfinished tasks" in ended.err


def test_a_paused_job_shows_the_actor_and_continues_after_resume(cli: Cli) -> None:
    cli.submit()
    assert cli("pause", "job-1").fields["paused"].startswith("by slurmctl ")
    assert cli("pause", "job-1").fields["paused"].endswith(", already before this call")
    assert cli("status", "job-1").fields["state"].startswith("paused by slurmctl ")
    waited = cli("wait", "job-1", "--timeout", "5")
    assert "; to continue: slurmctl resume job-1" in waited.err
    cli.slurm.end("101", "COMPLETED")
    cli.clock.events = [lambda: cli("resume", "job-1"), cli.work]
    ended = cli("wait", "job-1")
    assert ended.code == ExitCode.OK
    assert cli.slurm.names[1].startswith("job-1.000-2."), "its new workers"
    assert cli("resume", "job-1").fields["resumed"].startswith("no: ")


def test_workers_are_added_only_while_there_is_work_for_them(cli: Cli) -> None:
    cli.submit()
    assert cli("workers", "job-1", "--add", "5").fields["new workers"] == "1 in array 102"


def test_cancel_stops_what_is_alive(cli: Cli) -> None:
    cli.submit()
    assert cli("cancel", "job-1", "--json").json == {"job_id": "job-1", "cancelled": ["101"]}
    assert cli("cancel", "job-1").fields["cancelled"].startswith("nothing")


def test_resume_says_that_it_replaced_workers_of_a_job_that_was_not_paused(cli: Cli) -> None:
    cli.submit()
    cli.slurm.end("101", "FAILED")
    output = "slurmctl logs job-1 --worker 101_0 --output"
    assert output in cli("status", "job-1").fields["problem"]
    ended = cli("resume", "job-1")
    assert ended.fields["resumed"].startswith("new workers only: the job was neither paused")
    assert ended.fields["new workers"] == "2 in array 102"


def test_submit_after_cancel_continues(cli: Cli) -> None:
    cli.submit()
    cli("cancel", "job-1")
    assert cli.submit("--json").json["slurm_job_ids"] == ["102"]


def test_a_terminal_gets_a_table_and_a_progress_bar(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.submit()
    cli.clock.events = [cli.work]
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    ended = cli("wait", "job-1")
    assert ended.code == ExitCode.OK
    assert "\x1b[1mitems in" in ended.out
    assert f"{ITEMS - 2} of {ITEMS} items ok" in ended.err


def test_logs_are_chosen_by_task_worker_and_severity(cli: Cli) -> None:
    cli.submit()
    paths = cli.world.paths
    for worker, task, level in (
        ("7_0-r0-a", "000-00000000", "info"),
        ("7_1-r0-b", "000-00000001", "error"),
        ("7_1-r0-b", "000-00000002", "info"),
    ):
        line = {"level": level, "event": f"{level} of {task}", "task": task, "worker": worker}
        number = int(task[-1])
        data = gzip.compress(json.dumps(line).encode() + b"\nnot JSON\n")
        cli.world.objects.put(paths.log("000-1", worker, number), data)
    assert len(cli("logs", "job-1").out.splitlines()) == 3
    assert cli("logs", "job-1", "--errors").out.split() == [
        *("ERROR", "7_1-r0-b", "000-00000001", "error", "of", "000-00000001"),
    ]
    assert cli("logs", "job-1", "--worker", "7_0").out.count("\n") == 1
    assert cli("logs", "job-1", "--task", "000-00000002", "--json").json["level"] == "info"


def test_each_place_of_a_bug_is_shown_with_one_traceback(cli: Cli) -> None:
    cli.submit()
    bug = {"event": "item failed", "level": "warning", "exception": "Traceback\n  1 / 0"}
    for worker in ("101_0-r0-a", "101_1-r0-b"):
        lines = [
            {**bug, "error": f"ZeroDivisionError: {worker} (handler.py:4 in handle)"},
            {**bug, "error": f"KeyError: {worker} (handler.py:9 in handle)"},
        ]
        data = gzip.compress("\n".join(map(json.dumps, lines)).encode())
        cli.world.objects.put(cli.world.paths.log("000-1", worker, 0), data)
    out = cli("logs", "job-1", "--errors").out.splitlines()
    assert sum("item failed" in line for line in out) == 4
    assert [number for number, line in enumerate(out) if "Traceback" in line] == [1, 4]
    whole = cli("logs", "job-1", "--errors", "--json").out
    assert whole.count("Traceback") == 4


def test_the_logs_of_an_element_do_not_include_elements_whose_number_starts_with_it(
    cli: Cli,
) -> None:
    cli.submit()
    paths = cli.world.paths
    for worker in ("7_1-r0-a", "7_1-r1-b", "7_10-r0-c", "70_1-r0-d"):
        line = json.dumps({"level": "info", "event": "said", "worker": worker})
        cli.world.objects.put(paths.log("000-1", worker, 0), gzip.compress(line.encode()))

    def workers(asked: str) -> list[str]:
        lines = cli("logs", "job-1", "--worker", asked, "--json").out.splitlines()
        return [json.loads(line)["worker"] for line in lines]

    assert workers("7_1") == ["7_1-r0-a", "7_1-r1-b"]
    assert workers("7_1-r1-b") == ["7_1-r1-b"]
    assert workers("7") == ["7_1-r0-a", "7_1-r1-b", "7_10-r0-c"]


def test_the_output_of_a_worker_comes_from_the_cluster(cli: Cli) -> None:
    cli.submit()
    ended = cli("logs", "job-1", "--worker", "101_3", "--output")
    assert ended.out == "the end of 3\n"
    wrong = cli("logs", "job-1", "--worker", "999_3", "--output")
    assert (wrong.code, wrong.err) == (
        ExitCode.USER_ERROR,
        "slurmctl: --worker: '999_3' is not an element of an array of 'job-1'\n",
    )
    assert cli("logs", "job-1", "--output").code == ExitCode.USER_ERROR


def test_a_worker_that_is_not_an_element_of_an_array_is_refused_in_one_line(cli: Cli) -> None:
    cli.submit()
    wrong = cli("logs", "job-1", "--output", "--worker", "101_[7]")
    assert (wrong.code, wrong.err) == (
        ExitCode.USER_ERROR,
        "slurmctl: --worker: '101_[7]' is not an array element; write 1234_7\n",
    )


def test_aggregate_merges_files_without_a_job_or_a_site(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURMCTL_CONFIG", str(tmp_path / "nowhere.yaml"))
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"n": 2}\n{"n": 1}\n')
    (tmp_path / "schema.yaml").write_text("n: double\n")
    out = str(tmp_path / "out")
    ended = cli(
        "aggregate-files", folder, "-o", out, "--sort-by", "n",
        "--schema", tmp_path / "schema.yaml", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert (ended.json["rows"], ended.json["schema"]) == (2, {"n": "double"})
    assert cli("aggregate-files", folder, "-o", out).code == ExitCode.USER_ERROR

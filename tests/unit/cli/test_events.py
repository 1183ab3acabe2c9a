"""A job's full story is in its audit log, and a reader that follows it misses nothing."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_slurm_provider.cli.app import ExitCode
from airflow_slurm_provider.cli.wait_loop import TOLERATED_FAILURES
from airflow_slurm_provider.coordinator.status.audit_log import AuditLogReader
from slurm_worker.errors import ServiceError
from tests.unit.cli.conftest import Cli, Handler


def interrupt() -> None:
    raise KeyboardInterrupt


def test_the_audit_log_lists_every_action_in_order(cli: Cli, handler: Handler) -> None:
    def do(*arguments: str) -> Any:
        cli.clock.advance(1)
        ended = cli(*arguments, "--json")
        assert ended.code == ExitCode.OK, ended.err
        return ended.json

    submitted = cli.submit("--json").json
    config = cli.world.jobs.get().config
    do("pause", "job-1")
    cli.slurm.end("101", "COMPLETED")
    resumed = do("resume", "job-1")
    do("cancel", "job-1")
    cli.clock.advance(1)
    cli.submit()
    added = do("workers", "job-1", "--add", "1")
    cli.work()
    handler.cured = True
    retried = do("retry", "job-1", "--errors", "network")
    cli.work()
    published = do("aggregate", "job-1")

    story = do("events", "job-1")["events"]
    assert all(event["actor"].startswith("slurmctl ") and "@" in event["actor"] for event in story)
    told = [(event["action"], event["detail"]) for event in story]
    assert told == [
        ("planned", {"tasks": 3, "items": 25}),
        (
            "submitted",
            {
                "arrays": submitted["slurm_job_ids"][0],
                "workers": 2,
                "submission": "000-1",
                "config": config,
            },
        ),
        ("paused", {}),
        ("resumed", {"paused": story[0]["actor"], "stop": ""}),
        (
            "submitted",
            {
                "arrays": resumed["slurm_job_ids"][0],
                "workers": 2,
                "submission": "000-2",
                "config": config,
            },
        ),
        ("cancelled", {"arrays": "102"}),
        (
            "submitted",
            {"arrays": "103", "workers": 2, "submission": "000-4", "config": config},
        ),
        (
            "added workers",
            {
                "arrays": added["slurm_job_ids"][0],
                "workers": 1,
                "submission": "000-5",
                "config": cli.world.jobs.get().config,
            },
        ),
        (
            "retried",
            {key: value for key, value in retried.items() if key != "dry_run"}
            | {"config": cli.world.jobs.get().config},
        ),
        (
            "submitted",
            {
                "arrays": retried["slurm_job_ids"][0],
                "workers": 1,
                "submission": "001-1",
                "config": cli.world.jobs.get().config,
            },
        ),
        ("published", {name: published[name] for name in ("items", "ok", "rows")}),
    ]


def test_a_mark_continues_where_the_last_call_ended(cli: Cli) -> None:
    cli.submit()
    first = cli("events", "job-1", "--json").json
    assert [event["action"] for event in first["events"]] == ["planned", "submitted"]
    cli.clock.advance(1)
    cli("pause", "job-1")
    second = cli("events", "job-1", "--after", first["mark"], "--json").json
    assert [event["action"] for event in second["events"]] == ["paused"]
    third = cli("events", "job-1", "--after", second["mark"], "--json").json
    assert (third["events"], third["mark"]) == ([], second["mark"])


def test_a_line_shows_time_actor_action_and_details(cli: Cli) -> None:
    cli.submit()
    lines = cli("events", "job-1").out.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(": planned (tasks=3, items=25)")
    time, who, *_ = lines[0].split()
    assert (time[10], time[-1], who) == ("T", "Z", "slurmctl")


@pytest.mark.parametrize("as_json", [False, True])
def test_following_prints_what_is_new_until_interrupted(cli: Cli, as_json: bool) -> None:
    cli.submit()
    cli.clock.events = [
        lambda: cli.world.jobs.audit("me", "looked", {}),
        lambda: None,
        lambda: cli.world.jobs.audit("you", "looked too", {}),
        interrupt,
    ]
    ended = cli("events", "job-1", "--follow", *(["--json"] if as_json else []))
    assert ended.code == ExitCode.INTERRUPTED
    lines = ended.out.splitlines()
    assert len(lines) == (3 if as_json else 4), "planned and submitted, and one each"
    assert "looked too" in lines[-1]


def test_following_tolerates_a_table_that_is_away_for_a_while(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.submit()

    def away(*_: object, **__: object) -> None:
        raise ServiceError("the table is away")

    query = cli.world.rows.query
    cli.clock.events = [
        lambda: monkeypatch.setattr(cli.world.rows, "query", away),
        *[lambda: None] * (TOLERATED_FAILURES - 1),
        lambda: monkeypatch.setattr(cli.world.rows, "query", query),
        lambda: cli.world.jobs.audit("me", "looked", {}),
        lambda: monkeypatch.setattr(cli.world.rows, "query", away),
    ]
    ended = cli("events", "job-1", "--follow")
    assert ended.code == ExitCode.SERVICE_ERROR, "it stays away"
    assert ended.err.count("the table is away; next try in 5 s") == 2 * TOLERATED_FAILURES
    assert ended.out.splitlines()[-1].endswith("me: looked")


def test_a_late_event_is_printed_once(cli: Cli) -> None:
    cli.submit()
    jobs = cli.world.jobs
    reader = AuditLogReader(cli.services, jobs.job)
    assert len(reader.read()) == 2
    cli.clock.advance(10)
    jobs.audit("a worker", "later", {})
    assert [event.action for event in reader.read()] == ["later"]
    cli.clock.advance(-5)
    jobs.audit("a worker whose clock is behind", "late", {})
    assert [event.action for event in reader.read()] == ["late"]
    assert reader.read() == []

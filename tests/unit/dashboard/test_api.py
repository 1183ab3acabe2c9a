"""The JSON API: what it says of a job, and what it says when something is wrong."""

from __future__ import annotations

import gc
import gzip
import json
import weakref

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.anomalies.alert import (
    Alert,
    AnomalyKind,
    append_alert,
    append_end,
)
from airflow_slurm_provider.coordinator.status.audit_log import AuditLogReader
from airflow_slurm_provider.coordinator.ttl_cache import TTLCache
from airflow_slurm_provider.dashboard.cache import JobCache, SharedCache
from slurm_worker.protocol.keys import JobId
from tests.unit.dashboard.conftest import ITEMS, Dash

JOB = JobId("job-1")


def test_without_a_job_the_list_is_empty(dash: Dash) -> None:
    assert dash.json("/api/jobs") == {"jobs": [], "offset": 0, "more": False}


def test_jobs_are_listed_newest_first_a_page_at_a_time(dash: Dash) -> None:
    for number in range(3):
        dash.submit(f"job-{number}")
        dash.services.clock.sleep(1)
    first = dash.json("/api/jobs?limit=2")
    assert [each["job_id"] for each in first["jobs"]] == ["job-2", "job-1"]
    assert first["more"]
    second = dash.json("/api/jobs?limit=2&offset=2")
    assert [each["job_id"] for each in second["jobs"]] == ["job-0"]
    assert not second["more"]


def test_a_job_shows_its_progress(done: Dash) -> None:
    found = done.json("/api/jobs/job-1")
    job = found["job"]
    assert (job["state"], job["items"], job["ok"], job["pending"]) == ("complete", ITEMS, 23, 0)
    assert job["failed"] == {"bad_input": 1, "network": 1}
    assert job["tasks"] == {"done": 5}
    assert [(each["number"], each["tasks"]) for each in found["rounds"]] == [(0, 5)]
    assert found["submissions"][0]["workers"] == 3
    assert sum(found["timeline"]["ok"]) == 23
    assert {name: sum(each) for name, each in found["timeline"]["failed"].items()} == job["failed"]
    assert len(found["slowest"]) == 5
    names = [each["name"] for each in found["phases"]]
    assert names[0] == "Planned"
    assert "Worked" in names


def test_a_job_without_progress_shows_its_pending_items(dash: Dash) -> None:
    dash.submit()
    job = dash.json("/api/jobs/job-1")["job"]
    assert (job["state"], job["pending"], job["rate"], job["eta_s"]) == ("running", ITEMS, 0, None)


def test_workers_are_shown_by_slurms_state_and_by_their_work(done: Dash) -> None:
    found = done.json("/api/jobs/job-1/workers")
    assert (found["known"], found["alive"], found["states"]) == (True, 1, {"RUNNING": 1})
    (node,) = found["nodes"]
    assert (node["tasks"], node["ok"], node["failed"], node["error_rate"]) == (5, 23, 2, 0.08)
    assert found["worker_count"] == 1


def test_a_cluster_that_is_away_is_reported_and_everything_else_is_shown(done: Dash) -> None:
    done.slurm.away = True
    found = done.json("/api/jobs/job-1/workers")
    assert not found["known"]
    assert found["problem"] == "login.example: could not connect"
    assert found["nodes"]
    assert done.json("/api/jobs/job-1")["job"]["ok"] == 23


@pytest.mark.parametrize("path", ["/api/jobs", "/api/jobs/job-1", "/api/jobs/job-1/tasks"])
def test_a_table_that_is_away_is_503_and_named(done: Dash, path: str) -> None:
    done.rows.away = True
    answer = done.get(path)
    assert answer.status_code == 503
    assert answer.json() == {"detail": "DynamoDB table 't': could not connect"}
    assert answer.headers["retry-after"]


def test_a_store_that_is_away_is_503_and_named(done: Dash) -> None:
    done.json("/api/jobs/job-1")
    done.objects.away = True
    answer = done.get("/api/jobs/job-1/tasks/000-00000000")
    assert answer.status_code == 503
    assert "S3 bucket" in answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        *("", "/workers", "/limits", "/failures", "/cost", "/events", "/tasks", "/retry"),
        *("/anomalies", "/tasks/000-00000000", "/tasks/000-00000000/log"),
    ],
)
def test_an_unknown_job_is_404(dash: Dash, path: str) -> None:
    assert dash.get(f"/api/jobs/nothing{path}").status_code == 404


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/api/jobs?limit=many", "limit"),
        ("/api/jobs?limit=51", "limit"),
        ("/api/jobs?offset=-1", "offset"),
        ("/api/jobs/UPPER", "job"),
        ("/api/jobs/job-1/tasks/7", "task"),
        ("/api/jobs/job-1/tasks?state=lazy", "state"),
        ("/api/jobs/job-1/tasks?after=x", "after"),
    ],
)
def test_a_wrong_parameter_is_named_in_one_line(dash: Dash, path: str, field: str) -> None:
    dash.submit()
    answer = dash.get(path)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(f"{field}: ")
    assert "\n" not in answer.json()["detail"]


def test_a_rate_limit_is_shown_with_its_use(dash: Dash) -> None:
    dash.submit(limits={"api": {"rate": "10/s", "quota_per_day": 86_400}})
    assert dash.json("/api/jobs/job-1/limits") == [
        {
            "name": "api",
            "scope": "shared",
            "rate": 10.0,
            "current_rate": 10.0,
            "cuts": 0,
            "ahead_s": 0.0,
            "used": 0,
            "quota_per_day": 86_400,
        }
    ]


def test_failures_come_with_their_messages(done: Dash) -> None:
    found = done.json("/api/jobs/job-1/failures")
    assert {each["error_class"] for each in found} == {"bad_input", "network"}
    assert found[0]["examples"][0]["message"].endswith("is wrong")


def test_failures_are_read_once_until_there_are_new_ones(done: Dash) -> None:
    done.json("/api/jobs/job-1/failures")
    done.objects.away = True
    assert len(done.json("/api/jobs/job-1/failures")) == 2


def test_failures_are_read_again_when_there_are_new_ones(done: Dash) -> None:
    done.json("/api/jobs/job-1/failures")
    api.retry(done.services, JOB, ["network"], log=lambda _: None)
    done.work()
    done.forget_progress()
    found = {each["error_class"]: each for each in done.json("/api/jobs/job-1/failures")}
    assert (found["network"]["count"], found["network"]["superseded"]) == (1, 1)


def test_requests_share_cached_queries(done: Dash) -> None:
    done.json("/api/jobs/job-1")
    before = dict(done.rows.requests)
    for _ in range(5):
        done.json("/api/jobs/job-1")
    assert done.rows.requests == before


def test_a_second_request_reads_only_rows_that_can_have_changed(dash: Dash) -> None:
    dash.submit(bundle=1)
    dash.work()
    dash.json("/api/jobs/job-1")
    before = dash.rows.requests["query"]
    dash.forget_answers()
    dash.json("/api/jobs/job-1")
    shards = dash.services.jobs(JOB).get().shards
    # Rounds, submissions and the audit log beside one query per shard.
    assert dash.rows.requests["query"] - before <= shards + 3


def test_tasks_are_paged_without_gaps_or_repeats(done: Dash) -> None:
    for query in ("", "&state=done"):
        seen, after = [], ""
        while True:
            page = done.json(
                f"/api/jobs/job-1/tasks?limit=2&after={after.replace('#', '%23')}{query}"
            )
            seen += [each["task"] for each in page["tasks"]]
            after = page["next"]
            if not after:
                break
        assert sorted(seen) == [f"000-0000000{number}" for number in range(5)]


def test_a_state_without_tasks_is_an_empty_list(done: Dash) -> None:
    for state in ("leased", "failed", "quarantined", "ready"):
        assert done.json(f"/api/jobs/job-1/tasks?state={state}") == {"tasks": [], "next": ""}


def test_a_task_shows_its_row_and_what_it_committed(done: Dash) -> None:
    found = done.json("/api/jobs/job-1/tasks/000-00000000")
    assert found["task"]["state"] == "done"
    assert found["failed_by"] == {"bad_input": 1, "network": 1}
    assert {each["kind"] for each in found["marker"]["parts"]} == {"rows", "errors"}
    assert found["segment"].startswith("lab/jobs/job-1/input/000/segment-")


def test_an_unknown_task_is_404(done: Dash) -> None:
    answer = done.get("/api/jobs/job-1/tasks/000-00000099")
    assert answer.status_code == 404
    assert "000-00000099" in answer.json()["detail"]


def test_the_log_of_a_task_is_that_of_its_workers(done: Dash) -> None:
    task = "000-00000000"
    worker = done.json(f"/api/jobs/job-1/tasks/{task}")["task"]["worker"]
    lines = [
        {"task": task, "event": "item failed", "level": "warning", "worker": worker},
        {"task": "000-00000001", "event": "other", "level": "info", "worker": worker},
    ]
    data = gzip.compress("\n".join(json.dumps(each) for each in lines).encode())
    paths = done.services.paths(JOB)
    done.objects.put(paths.log("000-1", worker, 0), data)
    lines[0]["worker"] = "somebody-else"
    other = gzip.compress(json.dumps(lines[0]).encode())
    done.objects.put(paths.log("000-1", "somebody-else", 0), other)
    found = done.json(f"/api/jobs/job-1/tasks/{task}/log")
    assert [("item failed" in line) for line in found["lines"]] == [True]
    assert not found["more"]


def test_the_audit_log_is_listed_newest_first(done: Dash) -> None:
    done.services.clock.sleep(1)
    done.services.jobs(JOB).audit("carol", "published", {"rows": 23})
    found = done.json("/api/jobs/job-1/events")
    assert [each["action"] for each in found] == ["published", "submitted", "planned"]
    assert found[0]["actor"] == "carol"


def test_events_of_a_job_without_requests_are_dropped_from_memory(done: Dash) -> None:
    now = 0.0
    done.submit("job-2")
    shared = SharedCache(TTLCache(clock=lambda: now), TTLCache(clock=lambda: now))
    cache = JobCache("", done.services, shared)
    events = cache.events(JOB)
    readers = (found for found in gc.get_objects() if type(found) is AuditLogReader)
    (kept,) = (weakref.ref(reader) for reader in readers if reader.events is events)
    cache.events(JobId("job-2"))
    gc.collect()
    assert kept() is not None
    now = 3_700.0
    cache.events(JobId("job-2"))
    gc.collect()
    assert kept() is None


def test_an_event_of_a_writer_whose_clock_is_behind_is_shown(done: Dash) -> None:
    clock, jobs = done.services.clock, done.services.jobs(JOB)
    clock.advance(60)
    jobs.audit("carol", "paused", {})
    done.json("/api/jobs/job-1/events")
    clock.advance(-20)
    jobs.audit("a worker", "late", {})
    clock.advance(20)
    done.forget_answers()
    actions = [event["action"] for event in done.json("/api/jobs/job-1/events")]
    assert actions == ["paused", "late", "submitted", "planned"]


def test_the_audit_log_is_read_from_where_the_last_read_ended(done: Dash) -> None:
    done.json("/api/jobs/job-1/events")
    done.services.clock.sleep(1)
    done.services.jobs(JOB).audit("carol", "published", {})
    done.forget_answers()
    actions = [each["action"] for each in done.json("/api/jobs/job-1/events")]
    assert actions == ["published", "submitted", "planned"]
    phases = done.json("/api/jobs/job-1")["phases"]
    assert phases[-1]["name"] == "Published"


def test_alerts_are_shown_with_their_numbers_until_they_are_over(done: Dash) -> None:
    jobs = done.services.jobs(JOB)
    alert = Alert("job-1", AnomalyKind.BAD_NODE, "node2", 1, "bad", "exclude it", {"share": 0.25})
    assert append_alert(jobs, "watcher", alert)
    (found,) = done.json("/api/jobs/job-1/anomalies")
    assert (found["kind"], found["subject"], found["over_ms"]) == ("bad_node", "node2", 0)
    assert found["numbers"] == {"share": 0.25}
    assert done.json("/api/jobs/job-1")["anomalies"] == 1
    done.services.clock.sleep(60)
    assert append_end(jobs, "watcher", alert)
    done.forget_answers()
    (over,) = done.json("/api/anomalies")
    assert over["over_ms"] - over["at_ms"] == 60_000


def test_an_old_alert_is_shown_behind_more_events_than_are_kept(done: Dash) -> None:
    jobs = done.services.jobs(JOB)
    alert = Alert("job-1", AnomalyKind.BAD_NODE, "node2", 1, "bad", "exclude it", {"share": 0.25})
    assert append_alert(jobs, "watcher", alert)
    for number in range(5_100):
        jobs.audit("worker", "lease_stolen", {"lost": number})
    assert len(done.json("/api/jobs/job-1/anomalies")) == 1


def test_the_cost_of_a_job_is_shown_by_kind_of_request(done: Dash) -> None:
    found = done.json("/api/jobs/job-1/cost")
    assert found["dollars"] > 0
    assert sum(each["dollars"] for each in found["lines"]) == pytest.approx(found["dollars"])
    assert found["cluster"] is None
    assert found["problem"]

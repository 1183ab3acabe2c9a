"""What Prometheus reads, and that Grafana's dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from airflow_slurm_provider.coordinator.anomalies.alert import Alert, AnomalyKind, append_alert
from airflow_slurm_provider.dashboard.metrics import METRICS, render
from slurm_worker.protocol.keys import JobId
from tests.unit.dashboard.conftest import ITEMS, Dash

GRAFANA = Path(__file__).resolve().parents[3] / "docs" / "grafana" / "dashboard.json"
LINE = re.compile(r'(\w+)\{((?:\w+="(?:[^"\\]|\\.)*",?)*)\} ([-+.\de]+)')


def samples(text: str) -> dict[str, float]:
    """Values by name and labels, as they are written."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = LINE.fullmatch(line)
            assert match, line
            found[f"{match[1]}{{{match[2]}}}"] = float(match[3])
    return found


def test_a_job_has_its_metrics(done: Dash) -> None:
    answer = done.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.text)
    assert found['slurm_backfill_up{service="table"}'] == 1
    assert found['slurm_backfill_items{job="job-1"}'] == ITEMS
    assert found['slurm_backfill_items_ok{job="job-1"}'] == 23
    assert found['slurm_backfill_items_failed{job="job-1",class="network"}'] == 1
    assert found['slurm_backfill_tasks{job="job-1",state="done"}'] == 5
    assert found['slurm_backfill_job_state{job="job-1",state="complete"}'] == 1
    assert found['slurm_backfill_dollars{job="job-1"}'] > 0


def test_a_running_job_has_metrics_of_workers_and_limits(dash: Dash) -> None:
    dash.submit(limits={"api": {"rate": "10/s"}})
    found = samples(dash.get("/metrics").text)
    assert found['slurm_backfill_workers_alive{job="job-1"}'] == 1
    assert found['slurm_backfill_workers{job="job-1",state="RUNNING"}'] == 1
    assert found['slurm_backfill_limit_configured_rate{job="job-1",limit="api"}'] == 10
    assert found['slurm_backfill_limit_rate{job="job-1",limit="api"}'] == 10


def test_alerts_are_counted_by_kind(done: Dash) -> None:
    alert = Alert("job-1", AnomalyKind.STALL, "job", 1, "nothing ends", "look at the log")
    append_alert(done.services.jobs(JobId("job-1")), "watcher", alert)
    found = samples(done.get("/metrics").text)
    assert found['slurm_backfill_anomalies_total{job="job-1",kind="stall"}'] == 1


def test_services_that_are_away_are_reported_as_down(dash: Dash) -> None:
    dash.submit()
    dash.slurm.away = True
    found = samples(dash.get("/metrics").text)
    assert found['slurm_backfill_up{job="job-1",service="cluster"}'] == 0
    assert found['slurm_backfill_items{job="job-1"}'] == ITEMS
    dash.forget_answers()
    dash.rows.away = True
    assert samples(dash.get("/metrics").text) == {'slurm_backfill_up{service="table"}': 0}


def test_only_the_newest_jobs_have_metrics(dash: Dash) -> None:
    for number in range(3):
        dash.submit(f"job-{number}")
        dash.services.clock.sleep(1)
    text = dash.get("/metrics?jobs=2").text
    assert {'job="job-2"' in text, 'job="job-1"' in text} == {True}
    assert 'job="job-0"' not in text


def test_labels_are_escaped() -> None:
    text = render([("slurm_backfill_up", {"service": 'a"b\\c\nd'}, 1)])
    assert 'slurm_backfill_up{service="a\\"b\\\\c\\nd"} 1' in text


def test_large_numbers_are_written_in_full() -> None:
    text = render([("slurm_backfill_items", {}, 123_456_789)])
    assert "slurm_backfill_items{} 123456789" in text


def test_every_metric_is_described_once(done: Dash) -> None:
    text = done.get("/metrics").text
    for name, (kind, _) in METRICS.items():
        assert text.count(f"# HELP {name} ") == 1
        assert text.count(f"# TYPE {name} {kind}\n") == 1


PANELS = {each["title"]: each for each in json.loads(GRAFANA.read_text())["panels"]}


@pytest.mark.parametrize("title", PANELS)
def test_panels_of_grafana_use_metrics_that_exist(done: Dash, title: str) -> None:
    text = done.get("/metrics").text
    assert PANELS[title]["targets"]
    for target in PANELS[title]["targets"]:
        names = re.findall(r"slurm_backfill_\w+", target["expr"])
        assert names, target
        for name in names:
            assert f"# TYPE {name} " in text, name

"""A dry run says what submit then does, needs no cluster, and writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.costs.dry_run import Estimate, estimate
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.testing import MemoryObjects, MemoryRows
from tests.unit.coordinator.fakes import FakeSlurm, make_config, services


class Away(FakeSlurm):
    """A cluster that can't be reached, for anything."""

    def max_array_size(self) -> int:
        raise ServiceError("cluster: no route to host")

    put_file = put_secret = submit = version = max_array_size  # type: ignore[assignment]


def plan(config: Config, edges: Services | None = None, **options: Any) -> Estimate:
    return estimate(edges or services(), config, **options)


def test_submit_does_what_was_planned(tmp_path: Path) -> None:
    slurm = FakeSlurm(array_size=2)
    edges, config = services(slurm), make_config(tmp_path, 48, worker={"processes": 50})
    found = plan(config, edges)
    submitted = api.submit(edges, config, log=lambda _: None)
    assert (found.items, found.tasks, found.workers) == (48, 10, 3)
    assert (submitted.items, submitted.tasks, submitted.workers) == (48, 10, 3)
    assert found.arrays == (2, 1)
    assert len(submitted.slurm_job_ids) == 2
    (row,) = edges.jobs(config.spec.id).rounds()
    assert row.tasks == found.tasks
    # By the processes that look for tasks, of which each worker has fifty.
    assert edges.jobs(config.spec.id).get().shards == found.shards == 16
    token = submitted.slurm_job_name.split(".")[-1]
    remote = edges.slurm.put_file("", b"").removesuffix("/")
    expected = found.script.replace("TOKEN", token).replace(" .airflow-slurm/", f" {remote}/")
    assert slurm.scripts[0] == expected


def test_nothing_is_written_and_no_cluster_is_needed(tmp_path: Path) -> None:
    edges = services(Away())
    found = plan(make_config(tmp_path), edges)
    assert (found.tasks, found.max_array_size, found.arrays) == (10, None, (3,))
    assert "no route to host" in found.notes[0]
    assert isinstance(edges.objects, MemoryObjects)
    assert isinstance(edges.rows, MemoryRows)
    assert list(edges.objects.list("")) == []
    assert not edges.rows.requests


def test_rate_limits_give_the_shortest_time_and_the_most_useful_workers(
    tmp_path: Path,
) -> None:
    limits = {"api": {"rate": "2/s", "burst": 2}, "day": {"rate": "100/s", "quota_per_day": 20}}
    found = plan(make_config(tmp_path / "a", 50, limits=limits))
    assert found.shortest_s == 2 * 86_400, "the third day's quota is the first with enough"
    alone = make_config(tmp_path / "b", 50, limits={"api": {"rate": "2/s", "burst": 2}})
    assert plan(alone).shortest_s == 24.0
    starved = make_config(
        tmp_path / "c", 50, limits={"api": {"rate": "1/s"}}, worker={"item_timeout": 1}
    )
    found = plan(starved)
    assert (found.workers_asked, found.workers) == (3, 2)
    assert "keeps at most 2 workers" in found.notes[0]


def test_seconds_per_item_give_the_time_of_the_work_and_its_heartbeats(tmp_path: Path) -> None:
    config = make_config(tmp_path, 60)
    plain, timed = plan(config), plan(config, item_s=30.0)
    assert (plain.work_s, timed.work_s) == (None, 60 * 30 / 3)
    beats = timed.total.requests["dynamo_write"] - plain.total.requests["dynamo_write"]
    assert beats == 60 * 30 / 30


def test_the_most_cpu_hours_follow_from_the_slurm_options(tmp_path: Path) -> None:
    options = {"time": "02:00:00", "cpus_per_task": 4, "mem": "2G"}
    found = plan(make_config(tmp_path, slurm=options))
    assert found.cpu_hours_most == 3 * 4 * 2
    assert found.resources == ("--time=02:00:00", "--mem=2G", "--cpus-per-task=4")


def test_a_dry_run_finds_errors_in_the_input(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    lines = tmp_path / "items.jsonl"
    lines.write_text(lines.read_text() + '{"id": "k1", "n": 1}\n')
    with pytest.raises(UserError, match="k1"):
        plan(config)

"""Garbage is found and deleted; what a marker or the manifest names never is."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.maintenance.gc import WEEK_S, GcResult, collect
from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.errors import UserError
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.job_store import Marker, Part, probe_replacing
from slurm_worker.protocol.keys import (
    JobId,
    new_draft,
    segment_number,
    shard_of,
    task_id,
    task_pk,
    task_sk,
)
from slurm_worker.protocol.paths import JobPaths, version_name
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.testing import MemoryObjects
from tests.unit.coordinator.fakes import make_config, services, world_of

JOB = JobId("job-1")
LONG_AGO = 0.0
TASKS, SHARDS = 10, 8


@pytest.fixture
def edges(tmp_path: Path) -> Services:
    """A job that is done and published."""
    edges = services()
    config = make_config(tmp_path / "config")
    api.submit(edges, config, log=lambda _: None)
    world_of(edges, config, tmp_path / "node", lambda item, _: item).worker().run()
    api.aggregate(edges, JOB, log=lambda _: None)
    return edges


def objects_of(edges: Services) -> MemoryObjects:
    return cast("MemoryObjects", edges.objects)


def leave(edges: Services, key: str, *, modified: float = LONG_AGO) -> str:
    objects_of(edges).put(key, b"left behind")
    objects_of(edges).modified[key] = modified
    return key


def run(edges: Services, **options: Any) -> GcResult:
    return collect(edges, JOB, log=lambda _: None, **options)


def actions(edges: Services) -> list[str]:
    return [each.action for each in edges.jobs(JOB).events()]


def test_a_clean_job_has_no_garbage(edges: Services) -> None:
    before = dict(objects_of(edges).objects)
    assert run(edges, older_than_s=0).objects.total() == 0
    assert objects_of(edges).objects == before
    assert "collected" not in actions(edges)


def test_each_kind_of_garbage_is_deleted_counted_and_audited(edges: Services) -> None:
    before = dict(objects_of(edges).objects)
    paths, task, now = edges.paths(JOB), task_id(0, 3), time.time()
    version = version_name(1, "0123456789abcdef", "lost")
    left = [
        leave(edges, paths.part(task, 1, "lost", "jsonl.gz"), modified=now),
        leave(edges, paths.checkpoint(task, 1, 0), modified=now),
        leave(edges, paths.proposed(task, 1), modified=now),
        leave(edges, f"{paths.dataset_of(version)}part-0.parquet", modified=now - WEEK_S - 9),
        leave(edges, f"{paths.errors_of(version)}part-0.parquet", modified=now - WEEK_S - 9),
    ]
    found = run(edges)
    assert found.objects == {"parts": 1, "checkpoints": 1, "proposed": 1, "dataset": 2}
    assert found.sizes.total() == len(left) * len(b"left behind")
    assert objects_of(edges).objects == before
    assert actions(edges).count("collected") == 1
    assert run(edges).objects.total() == 0
    assert actions(edges).count("collected") == 1


def test_replaced_versions_stay_until_they_are_old_enough(edges: Services) -> None:
    version = version_name(1, "0123456789abcdef", "lost")
    key = f"{edges.paths(JOB).dataset_of(version)}part-0.parquet"
    leave(edges, key, modified=time.time() - WEEK_S + 600)
    assert run(edges).objects.total() == 0
    assert run(edges, older_than_s=60).objects == {"dataset": 1}


def test_a_dry_run_deletes_nothing(edges: Services) -> None:
    leave(edges, edges.paths(JOB).part(task_id(0, 3), 1, "lost", "jsonl.gz"))
    before = dict(objects_of(edges).objects)
    found = run(edges, dry_run=True)
    assert found.to_dict()["by_kind"] == {"parts": {"objects": 1, "bytes": 11}}
    assert objects_of(edges).objects == before
    assert "collected" not in actions(edges)


def test_nothing_is_deleted_beside_a_manifest_of_another_release(edges: Services) -> None:
    paths = edges.paths(JOB)
    leave(edges, f"{paths.dataset}0123456789abcdef/part-0.parquet")
    objects_of(edges).put(paths.manifest, json.dumps({"v": 99}).encode())
    assert run(edges, older_than_s=0).objects.total() == 0


def test_while_a_job_runs_only_objects_with_a_final_decision_are_garbage(tmp_path: Path) -> None:
    edges = services()
    config = make_config(tmp_path / "config", items=10)
    api.submit(edges, config, log=lambda _: None)
    paths, store = edges.paths(JOB), edges.store(JOB)
    done, ready = task_id(0, 0), task_id(0, 1)
    part = Part("rows", paths.part(done, 2, "u", "jsonl.gz"), 1, "", 5)
    store.commit(Marker(JOB, done, 2, "w", 5, 5, 5, parts=(part,)))
    kept = [
        leave(edges, part.key),
        leave(edges, paths.part(ready, 1, "u", "jsonl.gz")),
        leave(edges, paths.checkpoint(ready, 1, 0)),
        leave(edges, paths.proposed(done, 2)),
    ]
    gone = [
        leave(edges, paths.part(done, 1, "u", "jsonl.gz")),
        leave(edges, paths.checkpoint(done, 1, 0)),
    ]
    found = run(edges, older_than_s=0)
    assert (found.complete, found.objects) == (False, {"parts": 1, "checkpoints": 1})
    assert [key for key in kept if key not in objects_of(edges).objects] == []
    assert [key for key in gone if key in objects_of(edges).objects] == []


def test_a_part_that_a_suspended_worker_may_yet_commit_stays(edges: Services) -> None:
    paths, store, lost = edges.paths(JOB), edges.store(JOB), task_id(0, 3)
    marker = store.marker(lost)
    assert marker is not None
    objects_of(edges).delete(paths.done(lost))
    for part in marker.parts:
        objects_of(edges).modified[part.key] = LONG_AGO
    assert run(edges, older_than_s=0).objects.total() == 0
    assert store.commit(marker) == marker
    assert all(store.read_part(part) for part in marker.parts)


def test_the_object_of_a_probe_stays_while_the_probe_is_suspended(edges: Services) -> None:
    objects, seen = objects_of(edges), []

    class Suspended(MemoryObjects):
        """The process that probes is suspended for a day after its first PUT."""

        def put_new(self, key: str, body: bytes) -> bool:
            created = super().put_new(key, body)
            if not seen:
                seen.append(key)
                objects.modified[key] = LONG_AGO
                run(edges, older_than_s=0)
            return created

    suspended = Suspended()
    suspended.objects, suspended.modified = objects.objects, objects.modified
    assert probe_replacing(suspended, edges.paths(JOB)) is not None


def test_an_unknown_job_is_refused() -> None:
    with pytest.raises(UserError, match="'job-1'"):
        run(services())


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, int, str, bool, float]]:
    """Parts of tasks: (task, attempt, unique, named by the marker, age)."""
    one = st.tuples(
        st.integers(0, TASKS - 1),
        st.integers(1, 3),
        st.sampled_from(["u", "v"]),
        st.booleans(),
        st.floats(0, 3 * WEEK_S),
    )
    return draw(st.lists(one, max_size=30, unique_by=lambda each: each[:3]))


class TestWhateverIsThere:
    @settings(max_examples=50, deadline=None)
    @given(parts=histories(), older_than_s=st.floats(0, 2 * WEEK_S), complete=st.booleans())
    def test_nothing_that_a_marker_names_is_deleted(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        parts: list[tuple[int, int, str, bool, float]],
        older_than_s: float,
        complete: bool,
    ) -> None:
        edges = services()
        config = make_config(tmp_path_factory.mktemp("config"))
        api.submit(edges, config, log=lambda _: None)
        paths, store, now = edges.paths(JOB), edges.store(JOB), edges.clock.now()
        named = self._leave(edges, paths, parts, now)
        for number, keys in named.items():
            marker = Marker(
                JOB,
                task_id(0, number),
                1,
                "w",
                5,
                5,
                5,
                parts=tuple(Part("rows", key, 1, "", 5) for key in keys),
            )
            store.commit(marker)
        if complete:
            self._end(edges)
        assert run(edges, older_than_s=older_than_s).complete is complete
        assert all(
            part.key in objects_of(edges).objects
            for marker in store.markers()
            for part in marker.parts
        )
        assert len(list(store.markers())) == len(named)

    def _end(self, edges: Services) -> None:
        """Nothing is left to do: done is what has a marker, and the rest has no row."""
        table = TaskTable(edges.rows, JOB, SHARDS, LeaseConfig(), edges.clock)
        for number in range(TASKS):
            marker = edges.store(JOB).marker(task_id(0, number))
            if marker is None:
                edges.rows.delete(task_pk(JOB, shard_of(number, SHARDS)), task_sk(0, number))
            else:
                table.complete(marker)

    def _leave(
        self,
        edges: Services,
        paths: JobPaths,
        parts: list[tuple[int, int, str, bool, float]],
        now: float,
    ) -> dict[int, list[str]]:
        named: dict[int, list[str]] = {}
        for number, attempt, unique, wanted, age in parts:
            key = paths.part(task_id(0, number), attempt, unique, "jsonl.gz")
            leave(edges, key, modified=now - age)
            if wanted:
                named.setdefault(number, []).append(key)
        return named


def test_a_draft_that_is_not_a_plan_is_garbage_and_the_plan_is_not(edges: Services) -> None:
    paths, other = edges.paths(JOB), new_draft()
    before = dict(objects_of(edges).objects)
    leave(edges, paths.segment(0, segment_number(other, 0)), modified=edges.clock.now())
    leave(edges, paths.draft_summary(0, other), modified=edges.clock.now())
    leave(edges, paths.draft_files(0, other), modified=edges.clock.now())
    assert run(edges).objects == {"drafts": 3}
    assert objects_of(edges).objects == before


def test_a_draft_of_a_round_without_a_plan_stays(edges: Services) -> None:
    edges.jobs(JOB).create_round(1, "retry")
    leave(edges, edges.paths(JOB).segment(1, segment_number(new_draft(), 0)))
    assert run(edges, older_than_s=0).objects.total() == 0

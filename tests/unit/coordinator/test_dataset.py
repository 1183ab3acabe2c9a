"""Merging on the nodes: a job like any other, and the same bytes as merging here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_slurm_provider.coordinator import api, spec_store
from airflow_slurm_provider.coordinator.maintenance.gc import collect
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config
from airflow_slurm_provider.coordinator.status.progress import read_progress
from airflow_slurm_provider.coordinator.submission.credentials import session_policy
from slurm_worker.aggregate.dataset.folder import DatasetFolder
from slurm_worker.aggregate.node import merge_file
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import JobId, merge_job_id, merged_job
from slurm_worker.results.parts import lines_of
from tests.unit.coordinator.fakes import FakeSlurm, make_config, services, world_of


def log(_line: str) -> None:
    pass


def finished(folder: Path, **aggregate: Any) -> tuple[Services, Config]:
    """A job whose items are done."""
    edges = services(FakeSlurm())
    config = make_config(folder / "job", aggregate={"rows_per_file": 12, **aggregate})
    api.submit(edges, config, log=log)

    def handle(item: dict[str, Any], _context: object) -> dict[str, Any]:
        return {**item, "nested": {"a b": [item["n"] / 4]}}

    world_of(edges, config, folder / "w", handle).worker().run()
    return edges, config


def merge_on_nodes(
    edges: Services, config: Config, scratch: Path, **params: Any
) -> api.SubmitResult:
    """Start the merge, and do what its workers would."""
    submitted = api.merge_on_nodes(edges, config.spec.id, log=log)
    assert submitted is not None
    name = JobId(submitted.job_id)
    spec = spec_store.read_spec(edges, edges.jobs(name).get())

    def handle(item: dict[str, Any], context: Any) -> dict[str, Any]:
        return merge_file(
            item,
            SimpleNamespace(  # type: ignore[arg-type]  # what the handler uses of it
                params={**spec.handler.params, **params},
                objects=context.objects,
                scratch=context.scratch,
                key=context.key,
                attempt=context.attempt,
                logger=context.logger,
            ),
        )

    world_of(edges, Config(spec, scratch, "test"), scratch / "n", handle).worker().run()
    return submitted


def described(manifest: dict[str, Any]) -> list[Any]:
    """A dataset's files by their names in its folder."""
    return [
        {**file, "key": file["key"].removeprefix(manifest["folder"])} for file in manifest["files"]
    ]


@pytest.mark.parametrize("schema", [None, {"id": "string", "n": "int64", "nested": "json"}])
def test_nodes_write_the_same_bytes_and_the_coordinator_only_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schema: dict[str, str] | None
) -> None:
    edges, config = finished(tmp_path / "a", schema=schema)
    here = api.aggregate(edges, config.spec.id, log=log)
    edges, config = finished(tmp_path / "b", schema=schema)
    submitted = merge_on_nodes(edges, config, tmp_path)
    assert submitted.tasks == len(here["files"]) == 4
    monkeypatch.setattr(DatasetFolder, "write", lambda *_: pytest.fail("a file was merged here"))
    there = api.aggregate(edges, config.spec.id, log=log)
    assert described(there) == described(here)
    assert all(file["key"].startswith(there["folder"]) for file in there["files"])
    assert api.merge_on_nodes(edges, config.spec.id, log=log) is None, "it is up to date"


def test_the_coordinator_writes_the_files_that_the_nodes_did_not_write(tmp_path: Path) -> None:
    edges, config = finished(tmp_path / "a")
    merge_on_nodes(edges, config, tmp_path)
    (first, *_) = list(edges.objects.list(edges.paths(config.spec.id).dataset))
    edges.objects.delete(first)
    assert api.aggregate(edges, config.spec.id, log=log)["rows"] == 50


def test_a_suspended_node_cannot_change_the_published_dataset(tmp_path: Path) -> None:
    edges, config = finished(tmp_path / "a")
    submitted = merge_on_nodes(edges, config, tmp_path)
    paths, store = edges.paths(config.spec.id), edges.store(JobId(submitted.job_id))
    written = [
        json.loads(line)["key"]
        for marker in store.markers()
        for part in marker.parts
        for line in lines_of(store.read_part(part), part.key).splitlines()
    ]
    manifest = api.aggregate(edges, config.spec.id, log=log)
    for key in written:
        edges.objects.put(key, b"the bytes of another build, late")
    for file in manifest["files"]:
        body = edges.objects.get(file["key"])
        assert body is not None
        assert hashlib.sha256(body).hexdigest() == file["sha256"]
    collected = collect(edges, config.spec.id, log=log)
    assert collected.objects["dataset"] == len(written) == 4
    assert not set(written) & set(edges.objects.list(paths.dataset))


def test_files_merged_by_nodes_of_an_older_release_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges, config = finished(tmp_path / "a")
    folder = f"{edges.paths(config.spec.id).dataset}0123456789abcdef/"
    merge_on_nodes(edges, config, tmp_path, folder=folder)
    monkeypatch.setattr(DatasetFolder, "write", lambda *_: pytest.fail("a file was merged here"))
    manifest = api.aggregate(edges, config.spec.id, log=log)
    assert len(manifest["files"]) == 4
    assert all(file["key"].startswith(manifest["folder"]) for file in manifest["files"])


def test_another_pyarrow_on_the_node_is_refused(tmp_path: Path) -> None:
    edges, config = finished(tmp_path)
    submitted = merge_on_nodes(edges, config, tmp_path, pyarrow="1.0")
    failed = read_progress(edges, JobId(submitted.job_id)).failed
    assert failed == {"handler_bug": 4}


def test_a_sorted_dataset_is_not_merged_on_nodes(tmp_path: Path) -> None:
    edges, config = finished(tmp_path, sort_by=["n"])
    with pytest.raises(UserError, match=r"set aggregate\.where to local"):
        api.merge_on_nodes(edges, config.spec.id, log=log)


def test_an_incomplete_job_is_not_merged(tmp_path: Path) -> None:
    edges, config = services(FakeSlurm()), make_config(tmp_path)
    api.submit(edges, config, log=log)
    with pytest.raises(UserError, match="10 unfinished tasks"):
        api.merge_on_nodes(edges, config.spec.id, log=log)


def test_the_merge_jobs_credentials_allow_the_other_jobs_parts_and_dataset() -> None:
    edges = services()
    name = merge_job_id(JobId("flights"), "0123456789abcdef")
    assert merged_job(name) == "flights"
    assert merged_job(JobId("flights")) is None
    statements = session_policy(edges.site, name)["Statement"]
    objects = [
        statement["Resource"] for statement in statements if isinstance(statement["Resource"], list)
    ]
    assert [r.rpartition("jobs/")[2] for r in objects[0]] == [f"{name}/*", "flights/dataset/*"]
    assert [r.rpartition("jobs/")[2] for r in objects[1]] == [f"{name}/*", "flights/*"]


def test_an_error_in_a_part_fails_its_item(tmp_path: Path) -> None:
    edges, config = finished(tmp_path, schema={"id": "string", "n": "int64", "nested": "json"})
    (part, *_) = list(edges.objects.list(edges.paths(config.spec.id).parts))
    edges.objects.put(part, b"other bytes")
    submitted = merge_on_nodes(edges, config, tmp_path)
    assert read_progress(edges, JobId(submitted.job_id)).failed == {"bad_input": 1}
    with pytest.raises(UserError, match="do not match"):
        api.aggregate(edges, config.spec.id, log=log)

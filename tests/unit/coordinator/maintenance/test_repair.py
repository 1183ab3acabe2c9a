"""Whatever rows are lost, a finished job is what it was after a repair."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from airflow_slurm_provider.coordinator import api, spec_store
from airflow_slurm_provider.coordinator.maintenance import gc
from airflow_slurm_provider.coordinator.maintenance.repair import RepairResult, repair
from airflow_slurm_provider.coordinator.planning.planner import DraftSummary, new_draft
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.failures import explain
from airflow_slurm_provider.coordinator.status.progress import read_progress
from slurm_worker.errors import ItemError, UserError
from slurm_worker.protocol import keys
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.job_store import Marker
from slurm_worker.protocol.keys import JobId, TaskId, TaskState, task_id
from slurm_worker.protocol.ports import Row
from slurm_worker.protocol.shard_progress import ShardCursors, ShardTotals
from slurm_worker.protocol.task_table import TaskTable, halves_of
from slurm_worker.protocol.tasks import Claimed, TaskRow
from slurm_worker.testing import MemoryObjects, MemoryRows
from tests.unit.coordinator.fakes import FakeSlurm, make_config, services, world_of
from tests.unit.coordinator.interleave import Call, Killed, one_killed, one_suspended
from tests.unit.world import World

JOB = JobId("job-1")


class Handler:
    """Fails k3 always and k17 until it is cured."""

    cured = False

    def __call__(self, item: dict[str, Any], context: Any) -> dict[str, Any]:
        if item["n"] == 3:
            raise ItemError("bad_input", "three is not valid")
        if item["n"] == 17 and not self.cured:
            raise ItemError("network", "connection reset")
        return item


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A job of two rounds that is done."""
    edges, handler = services(), Handler()
    config = make_config(tmp_path / "config")
    api.submit(edges, config, log=lambda _: None)
    world = world_of(edges, config, tmp_path / "node", handler)
    world.worker().run()
    handler.cured = True
    api.retry(edges, JOB, ["network"], log=lambda _: None)
    world.worker().run()
    return world


@pytest.fixture
def edges(world: World) -> Services:
    found = services()
    object.__setattr__(found, "rows", world.rows)
    object.__setattr__(found, "objects", world.objects)
    object.__setattr__(found, "clock", world.clock)
    return found


def run(edges: Services, **options: Any) -> RepairResult:
    edges.readers.clear()
    return repair(edges, JOB, log=lambda _: None, **options)


def status(edges: Services) -> dict[str, Any]:
    edges.readers.clear()
    return read_progress(edges, JOB).to_dict()


def published(edges: Services) -> dict[str, Any]:
    """The dataset, without the time when it was made."""
    manifest = api.aggregate(edges, JOB, log=lambda _: None)
    return {name: value for name, value in manifest.items() if name != "created"}


def table_of(edges: Services) -> list[Row]:
    return cast("MemoryRows", edges.rows).all_rows()


def marker_of(row: TaskRow, items: int, **changes: Any) -> Marker:
    """A marker as a worker makes it that holds the task of this row."""
    ok = changes.pop("ok", items)
    attempt, digest = changes.pop("attempt", 1), row.where.sha256
    return Marker(JOB, row.task, attempt, "w", items, ok, ok, input_sha256=digest, **changes)


def lose_everything(edges: Services) -> None:
    for row in table_of(edges):
        edges.rows.delete(str(row["pk"]), str(row["sk"]))


def ship_logs(edges: Services, *names: str) -> None:
    for name in names:
        edges.objects.put(f"{edges.paths(JOB).logs}{name}.jsonl.gz", b"")


def audited(edges: Services) -> int:
    return sum(each.action == "repaired" for each in edges.jobs(JOB).events())


def test_a_correct_job_is_not_changed(edges: Services, world: World) -> None:
    before = world.task_rows()
    found = run(edges)
    assert (found.changed, found.unrepaired) == (False, [])
    assert world.task_rows() == before
    assert audited(edges) == 0


def test_a_rebuilt_task_is_found_although_its_shard_was_finished(
    edges: Services, world: World
) -> None:
    generation = edges.jobs(JOB).get().generation
    ShardCursors(world.rows, JOB, world.shards).advance(0, generation, "999#")
    lost = next(row for row in world.task_rows() if row.sequence % world.shards == 0)
    world.rows.delete(keys.task_pk(JOB, 0), lost.sk)
    world.objects.delete(world.paths.done(lost.task))
    run(edges)
    world.worker().run()
    assert {row.state for row in world.task_rows()} == {TaskState.DONE}
    assert lost.task in {marker.task for marker in world.markers()}


def test_a_repair_that_died_after_its_last_row_is_finished_by_the_next(
    edges: Services, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = edges.jobs(JOB).get().generation
    ShardCursors(world.rows, JOB, world.shards).advance(0, generation, "999#")
    lost = next(row for row in world.task_rows() if row.sequence % world.shards == 0)
    world.rows.delete(keys.task_pk(JOB, 0), lost.sk)
    world.objects.delete(world.paths.done(lost.task))

    def cut(_jobs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("slurm_worker.protocol.job_table.JobTable.begin_generation", cut)
        with pytest.raises(KeyboardInterrupt):
            run(edges)
    run(edges)
    world.worker().run()
    assert {row.state for row in world.task_rows()} == {TaskState.DONE}


def test_a_task_that_a_repair_makes_ready_no_longer_counts_as_done(
    edges: Services, world: World
) -> None:
    for shard in range(world.shards):
        ShardTotals(world.store, world.jobs, world.table).update(shard)
    before = status(edges)
    lost = next(row for row in world.task_rows() if row.state is TaskState.DONE)
    world.rows.delete(keys.task_pk(JOB, lost.sequence % world.shards), lost.sk)
    world.objects.delete(world.paths.done(lost.task))
    run(edges)
    assert status(edges)["tasks"] == {"done": before["tasks"]["done"] - 1, "ready": 1}


def test_lost_task_rows_become_done_by_their_markers(edges: Services, world: World) -> None:
    before, rows = status(edges), world.task_rows()
    for row in rows[::2]:
        world.rows.delete(keys.task_pk(JOB, row.sequence % 8), row.sk)
    found = run(edges)
    lost = len(rows[::2])
    assert (found.tasks, found.completed, found.unrepaired) == (lost, lost, [])
    assert status(edges) == before
    after = world.task_rows()
    assert [row.where for row in after] == [row.where for row in rows]
    assert [row.winner for row in after] == [row.winner for row in rows]
    assert audited(edges) == 1
    assert not run(edges).changed
    assert audited(edges) == 1


def test_after_the_loss_of_the_whole_table_the_dataset_is_the_same(
    edges: Services, world: World
) -> None:
    before, dataset = status(edges), published(edges)
    register = [str(row["sk"]) for row in edges.rows.query(keys.JOBS_PK)]
    lose_everything(edges)
    found = run(edges)
    assert (found.job, found.rounds, found.tasks, found.completed) == (True, [0, 1], 11, 11)
    assert status(edges) == before
    assert published(edges) == dataset
    assert len(list(edges.rows.query(keys.JOBS_PK))) == len(register)
    assert "audit log" in found.unrepaired[0]
    again = run(edges)
    assert (again.changed, again.unrepaired) == (False, [])


def test_a_job_that_lost_its_rows_is_not_planned_again(edges: Services, tmp_path: Path) -> None:
    lose_everything(edges)
    config = make_config(tmp_path / "config")
    with pytest.raises(UserError, match="slurmctl doctor --repair --job job-1, or"):
        api.submit(edges, config, log=lambda _: None)
    assert table_of(edges) == []
    run(edges)
    assert api.submit(edges, config, log=lambda _: None).tasks == 10


def test_a_dataset_can_be_made_for_the_first_time_after_a_repair(edges: Services) -> None:
    lose_everything(edges)
    run(edges)
    assert published(edges)["rows"] == 49
    assert published(edges)["failed"] == {"bad_input": 1}


def test_a_repaired_job_can_be_retried(edges: Services) -> None:
    ship_logs(edges, "000-1/100_0-r0-aa-000", "001-1/101_0-r0-bb-000")
    lose_everything(edges)
    run(edges)
    retried = api.retry(edges, JOB, ["bad_input"], log=lambda _: None)
    assert (retried.round, retried.items) == (2, {"bad_input": 1})


def test_a_dry_run_reports_and_writes_nothing(edges: Services) -> None:
    lose_everything(edges)
    found = run(edges, dry_run=True)
    assert (found.job, found.rounds, found.tasks, found.completed) == (True, [0, 1], 11, 11)
    assert table_of(edges) == []


def test_a_row_that_disagrees_with_its_marker_is_completed(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.plan([(f"k{n}", {"n": n}) for n in range(30)])
    edges = services()
    for name in ("rows", "objects", "clock"):
        object.__setattr__(edges, name, getattr(world, name))
    row = world.task_rows()[0]
    claimed = world.table.claim(row, "w")
    assert isinstance(claimed, Claimed)
    world.store.commit(marker_of(row, 10, ok=9, failed={"network": 1}, finished=123.0))
    found = run(edges)
    assert (found.tasks, found.completed) == (0, 1)
    after = world.table.find(row.task)
    assert after is not None
    assert (after.state, after.items_ok, after.failed_by) == (TaskState.DONE, 9, {"network": 1})
    assert after.finished_ms == 123_000
    assert [each.state for each in world.task_rows()[1:]] == [TaskState.READY] * 2


def test_lost_halves_of_a_bisected_task_come_back(edges: Services, world: World) -> None:
    whole = world.task_rows()[0]
    halves = keys.halves(whole.task)
    assert halves is not None
    objects = cast("MemoryObjects", world.objects)
    old = world.store.marker(whole.task)
    assert old is not None
    objects.delete(world.paths.done(whole.task))
    split = marker_of(whole, 0, attempt=4, split=halves)
    world.store.commit(split)
    world.store.commit(marker_of(halves_of(whole)[0], 2))
    world.rows.delete(keys.task_pk(JOB, whole.sequence), whole.sk)
    found = run(edges)
    assert (found.tasks, found.completed) == (3, 2)
    states = {row.task: row.state for row in world.task_rows()}
    assert states[whole.task] is TaskState.DONE
    assert states[halves[0]] is TaskState.DONE
    assert states[halves[1]] is TaskState.READY
    half = world.table.find(halves[1])
    assert half is not None
    assert (half.where.first, half.where.count) == (2, 3)
    for each in halves:
        world.rows.delete(keys.task_pk(JOB, whole.sequence), "#".join(each.split("-")))
    found = run(edges)
    assert (found.tasks, found.completed) == (2, 1)
    assert not run(edges).changed


def test_a_lost_task_without_a_marker_continues_above_its_last_attempt(
    tmp_path: Path,
) -> None:
    edges = services()
    config = make_config(tmp_path, items=10)
    api.submit(edges, config, log=lambda _: None)
    paths, task = edges.paths(JOB), task_id(0, 1)
    edges.objects.put(paths.part(task, 2, "u", "jsonl.gz"), b"")
    edges.objects.put(paths.checkpoint(task, 7, 0), b"")
    edges.rows.delete(keys.task_pk(JOB, 1), keys.task_sk(0, 1))
    found = run(edges)
    assert (found.tasks, found.completed) == (1, 0)
    row = TaskTable(edges.rows, JOB, 8, LeaseConfig(), edges.clock).find(task)
    assert row is not None
    assert (row.state, row.attempt) == (TaskState.READY, 7)


def test_submissions_are_rebuilt_from_their_workers_logs(edges: Services) -> None:
    ship_logs(edges, "000-1/100_0-r0-aa-000", "000-1/100_1-r0-bb-000", "001-1/105_0-r0-cc-000")
    lose_everything(edges)
    found = run(edges)
    assert found.submissions == ["000-1", "001-1"]
    rows = edges.jobs(JOB).submissions()
    assert [(row.label, row.workers, row.slurm_job_ids) for row in rows] == [
        ("000-1", 2, ("100",)),
        ("001-1", 1, ("105",)),
    ]


def test_a_rebuilt_submission_has_the_token_of_its_arrays_names(edges: Services) -> None:
    slurm = edges.slurm
    assert isinstance(slurm, FakeSlurm)
    slurm.arrays = {f"{JOB}.000-1.feed12": "100", "theirs.001-1.beef34": "105"}
    ship_logs(edges, "000-1/100_0-r0-aa-000", "001-1/105_0-r0-cc-000")
    lose_everything(edges)
    run(edges)
    first, second = edges.jobs(JOB).submissions()
    assert first.token == "feed12"
    assert second.token not in ("", "beef34")


def test_a_plan_without_a_committed_task_is_left_to_submit(tmp_path: Path) -> None:
    edges = services()
    config = make_config(tmp_path, items=10)
    api.submit(edges, config, log=lambda _: None)
    lose_everything(edges)
    with pytest.raises(UserError, match="submit the job again"):
        run(edges)
    api.submit(edges, config, log=lambda _: None)
    assert status(edges)["tasks"] == {"ready": 2}


def test_a_retry_without_a_committed_task_is_reported(edges: Services) -> None:
    retried = api.retry(edges, JOB, ["bad_input"], log=lambda _: None)
    assert retried.round == 2
    lose_everything(edges)
    found = run(edges)
    assert found.rounds == [0, 1]
    assert any("round 2 has segments" in each for each in found.unrepaired)


def test_a_marker_that_the_store_does_not_list_yet_is_not_missing(
    edges: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, late = edges.objects.list, edges.paths(JOB).done(task_id(0, 2))
    monkeypatch.setattr(
        edges.objects, "list", lambda prefix: (key for key in listed(prefix) if key != late)
    )
    found = run(edges)
    assert (found.changed, found.unrepaired) == (False, [])


def test_a_marker_that_is_missing_from_the_bucket_is_named(edges: Services) -> None:
    edges.objects.delete(edges.paths(JOB).done(task_id(0, 2)))
    found = run(edges)
    assert not found.changed
    (named,) = found.unrepaired
    assert "task 000-00000002 is done" in named
    assert (
        "lab/jobs/job-1/done/000-00000002.done is missing from the bucket; restore that object"
        in named
    )


def test_lost_input_is_named(edges: Services, world: World) -> None:
    edges.objects.delete(next(edges.objects.list(edges.paths(JOB).segments(0))))
    row = world.task_rows()[0]
    world.rows.delete(keys.task_pk(JOB, row.sequence), row.sk)
    assert any("have no slice" in each for each in run(edges).unrepaired)
    lose_everything(edges)
    with pytest.raises(UserError, match="input of 'job-1'"):
        run(edges)


def test_the_number_of_shards_follows_from_the_rows_that_are_left(
    edges: Services, world: World
) -> None:
    config = edges.jobs(JOB).get().config
    data = edges.objects.get(edges.paths(JOB).config(config))
    assert data is not None
    edges.objects.put(
        edges.paths(JOB).config("f" * 64), data.replace(b'"shards": 8', b'"shards": 16')
    )
    edges.rows.delete(keys.job_pk(JOB), keys.META)
    found = run(edges)
    assert (found.job, found.rounds, found.tasks) == (True, [], 0)
    row = edges.jobs(JOB).get()
    assert (row.config, row.shards) == (config, 8)


def test_a_job_without_rows_and_objects_is_unknown() -> None:
    with pytest.raises(UserError, match="nor a configuration"):
        run(services())


# --- results belong to the items that they were made from ---------------------


def expire_segments(edges: Services) -> None:
    for key in list(edges.objects.list(edges.paths(JOB).segments_folder)):
        edges.objects.delete(key)
    edges.objects.put(f"{edges.paths(JOB).segments(0)}notes.txt", b"who has deleted these?")


def change_marker(edges: Services, task: TaskId, **changes: Any) -> None:
    marker = edges.store(JOB).marker(task)
    assert marker is not None
    edges.objects.put(edges.paths(JOB).done(task), replace(marker, **changes).to_json())


def test_a_failed_repair_still_protects_results_from_another_input(
    edges: Services, tmp_path: Path
) -> None:
    lose_everything(edges)
    expire_segments(edges)
    with pytest.raises(UserError, match="can't be rebuilt"):
        run(edges)
    assert edges.jobs(JOB).find() is None
    config = make_config(tmp_path / "config")
    with pytest.raises(UserError, match="has results in"):
        api.submit(edges, config, log=lambda _: None)


def test_a_repair_that_dies_anywhere_protects_results_and_can_be_repeated(
    edges: Services, tmp_path: Path
) -> None:
    before = published(edges)
    config = make_config(tmp_path / "config")
    lose_everything(edges)
    for at in itertools.count():
        dying = Call(edges, lambda own: repair(own, JOB, log=lambda _: None))
        one_killed(dying, at, Call(edges, lambda _: None))
        if not isinstance(dying.error, Killed):
            break
        if edges.jobs(JOB).find() is None:
            with pytest.raises(UserError, match="has results in"):
                api.submit(edges, config, log=lambda _: None)
        if at % 7:
            lose_everything(edges)
    assert published(edges) == before


@pytest.mark.parametrize("rounds", [0, 1])
def test_the_row_left_by_a_failed_repair_of_an_earlier_release_is_not_a_plan(
    edges: Services, tmp_path: Path, rounds: int
) -> None:
    standing, before = edges.jobs(JOB).get(), published(edges)
    lose_everything(edges)
    edges.jobs(JOB).create(standing.identity, standing.config, standing.shards)
    for number in range(rounds):
        edges.jobs(JOB).create_round(number, "left")
    config = make_config(tmp_path / "config")
    with pytest.raises(UserError, match="has results in"):
        api.submit(edges, config, log=lambda _: None)
    run(edges)
    assert published(edges) == before
    assert api.submit(edges, config, log=lambda _: None).reattached is False


@pytest.mark.parametrize("digest", ["0" * 64, ""])
def test_a_job_is_not_rebuilt_from_a_marker_of_other_items(edges: Services, digest: str) -> None:
    lose_everything(edges)
    change_marker(edges, task_id(0, 4), input_sha256=digest)
    with pytest.raises(UserError, match=r"done/000-00000004\.done .* made from other items"):
        run(edges)
    assert edges.jobs(JOB).find() is None


def test_a_marker_of_other_items_completes_no_row(tmp_path: Path) -> None:
    edges, config = services(), make_config(tmp_path, items=10)
    api.submit(edges, config, log=lambda _: None)
    world = world_of(edges, config, tmp_path / "node", lambda item, _: item)
    row = world.task_rows()[0]
    edges.store(JOB).commit(replace(marker_of(row, 5), input_sha256="0" * 64))
    found = run(edges)
    assert (found.changed, len(found.unrepaired)) == (False, 1)
    assert world.task_rows()[0].state is TaskState.READY


def test_incomplete_segments_do_not_rebuild_a_smaller_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_slurm_provider.coordinator.planning.planner.SEGMENT_ITEMS", 10)
    edges, config = services(), make_config(tmp_path, items=50)
    api.submit(edges, config, log=lambda _: None)
    world = world_of(edges, config, tmp_path / "node", lambda item, _: item)
    row = world.task_rows()[0]
    edges.store(JOB).commit(marker_of(row, 5))
    lose_everything(edges)
    *_, last = edges.objects.list(edges.paths(JOB).segments(0))
    edges.objects.delete(last)
    with pytest.raises(UserError, match="segments of draft"):
        run(edges)
    assert edges.jobs(JOB).find() is None


def test_a_draft_left_beside_the_plan_is_not_used_as_the_plan(edges: Services) -> None:
    plan = edges.jobs(JOB).get().draft
    before = published(edges)
    items = [(f"other{n}", {"n": n}) for n in range(50)]
    with new_draft(edges.store(JOB), 0, items, 5, lambda _: None) as draft:
        draft.complete(DraftSummary(*draft.totals.figures, identity="of another input"))
    lose_everything(edges)
    run(edges)
    assert edges.jobs(JOB).get().draft == plan
    assert published(edges) == before


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("twin", [10**17, 10**18 - 1])
def test_of_two_drafts_with_the_same_items_the_one_in_task_rows_is_the_plan(
    edges: Services, number: int, twin: int
) -> None:
    paths, jobs = edges.paths(JOB), edges.jobs(JOB)
    plan = jobs.rounds()[number].draft
    objects = [*edges.objects.list(paths.segments(number)), paths.draft_summary(number, plan)]
    for key in objects:
        edges.objects.put(key.replace(str(plan), str(twin)), edges.objects.get(key) or b"")
    for row in list(edges.rows.query(keys.job_pk(JOB))):
        cast("MemoryRows", edges.rows).delete(str(row["pk"]), str(row["sk"]))
    run(edges)
    gc.collect(edges, JOB, log=lambda _: None)
    assert jobs.rounds()[number].draft == plan
    for row in edges.tasks(jobs.get()).rows_of_round(number):
        assert len(edges.store(JOB).read_slice(number, row.where))


def test_the_configuration_of_another_input_is_not_used_for_the_job(
    edges: Services, tmp_path: Path
) -> None:
    identity = edges.jobs(JOB).get().identity
    other = make_config(tmp_path / "another")
    spec_store.store_spec(edges, other.spec, 8, "")
    modified = cast("MemoryObjects", edges.objects).modified
    newest = max(edges.objects.list(edges.paths(JOB).config_folder), key=modified.__getitem__)
    assert other.spec.identity() != identity
    assert b"another" in (edges.objects.get(newest) or b"")
    lose_everything(edges)
    run(edges)
    assert edges.jobs(JOB).get().identity == identity
    with pytest.raises(UserError, match="exists with another input"):
        api.submit(edges, other, log=lambda _: None)


def test_a_dataset_is_not_made_from_a_marker_of_other_items(edges: Services) -> None:
    change_marker(edges, task_id(0, 4), input_sha256="0" * 64)
    with pytest.raises(UserError, match=r"done/000-00000004\.done .* made from other items"):
        published(edges)
    with pytest.raises(UserError, match="made from other items"):
        api.merge_on_nodes(edges, JOB, log=lambda _: None)


def test_a_retry_does_not_take_items_from_a_marker_of_other_items(edges: Services) -> None:
    change_marker(edges, task_id(0, 0), input_sha256="0" * 64)
    with pytest.raises(UserError, match=r"done/000-00000000\.done .* made from other items"):
        api.retry(edges, JOB, ["bad_input"], log=lambda _: None)
    with pytest.raises(UserError, match="made from other items"):
        explain(edges, JOB)


# --- beside live workers ------------------------------------------------------


@pytest.mark.parametrize("split", [False, True])
def test_a_task_that_ends_during_a_repair_is_not_reported_as_broken(
    tmp_path: Path, split: bool
) -> None:
    """At each step of a repair a worker does a task, or bisects one, from beginning to end."""
    for at in itertools.count():
        edges, config = services(), make_config(tmp_path, items=20)
        api.submit(edges, config, log=lambda _: None)
        world = world_of(edges, config, tmp_path / f"node-{at}", lambda item, _: item)

        def work(_: Services, world: World = world) -> None:
            row = world.task_rows()[1]
            claimed = world.table.claim(row, "w")
            assert isinstance(claimed, Claimed)
            halves = keys.halves(row.task) if split else None
            marker = marker_of(row, 0 if split else 5, split=halves or ())
            world.store.commit(marker)
            if halves:
                world.table.create_halves(row)
            world.table.complete(marker)

        repairing = Call(edges, lambda own: repair(own, JOB, log=lambda _: None))
        one_suspended(repairing, at, Call(edges, work))
        assert repairing.error is None, at
        assert not repairing.result.changed, (at, repairing.result)
        assert repairing.result.unrepaired == [], at
        if repairing.steps.seen <= at:
            break


def test_a_submission_that_begins_during_a_repair_is_not_reported_as_lost(
    edges: Services, tmp_path: Path
) -> None:
    def work(own: Services) -> None:
        own.jobs(JOB).record_submitted(own.jobs(JOB).record_intent(1, 7, 1, 1), ["107"])
        ship_logs(own, "001-7/107_0-r0-aa-000")

    for at in itertools.count():
        repairing = Call(edges, lambda own: repair(own, JOB, dry_run=True, log=lambda _: None))
        one_suspended(repairing, at, Call(edges, work))
        assert repairing.result.submissions == [], at
        edges.rows.delete(keys.job_pk(JOB), keys.submit_sk(1, 7))
        edges.objects.delete(f"{edges.paths(JOB).logs}001-7/107_0-r0-aa-000.jsonl.gz")
        if repairing.steps.seen <= at:
            break

"""Pause, resume, more workers: a wait continues, and nothing is submitted twice."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config
from airflow_slurm_provider.coordinator.spec_store import read_spec
from airflow_slurm_provider.coordinator.status.dead_workers import find_worker_failures
from airflow_slurm_provider.coordinator.status.logs import read_output, read_script
from airflow_slurm_provider.coordinator.status.progress import read_progress, read_status
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.coordinator.watcher import Watcher
from airflow_slurm_provider.slurm.array_state import ArrayKey
from airflow_slurm_provider.slurm.client import SubmissionCancelledError, SubmitRefusedError
from slurm_worker.errors import ItemError, ServiceError, UserError
from slurm_worker.protocol.job_rows import job_name
from slurm_worker.protocol.keys import SubmitState, job_pk, submit_sk
from slurm_worker.protocol.tasks import Claimed
from tests.unit.coordinator.fakes import FakeArray, FakeSlurm, make_config, services, world_of
from tests.unit.coordinator.interleave import Call, one_killed
from tests.unit.coordinator.planning.test_retry_round import Cut, cut_at

GONE = FakeArray(alive=0)


def log(_line: str) -> None:
    pass


def submitted(folder: Path, **changes: Any) -> tuple[Services, FakeSlurm, Config]:
    """A job of ten tasks and three workers."""
    slurm = FakeSlurm(state=FakeArray(alive=3))
    edges, config = services(slurm), make_config(folder, **changes)
    api.submit(edges, config, log=log)
    return edges, slurm, config


def actions(edges: Services, config: Config) -> list[tuple[str, str]]:
    return [(event.actor, event.action) for event in edges.jobs(config.spec.id).events()]


def hold(edges: Services, config: Config, folder: Path, owner: str) -> None:
    """Let a worker of this name hold one more task."""
    world = world_of(edges, config, folder, lambda item, _context: item)
    row = next(task for task in world.task_rows() if not task.attempt)
    assert isinstance(world.table.claim(row, owner), Claimed)


def work(edges: Services, config: Config, folder: Path) -> None:
    world_of(edges, config, folder, lambda item, _context: item).worker().run()


def test_waiting_for_a_paused_job_starts_no_workers_and_reports_no_problem(
    tmp_path: Path,
) -> None:
    edges, slurm, config = submitted(tmp_path)
    watcher = Watcher(edges, config.spec.id, log, max_resubmissions=3)
    assert control.pause(edges, config.spec.id, actor="me").changed
    slurm.state = GONE
    for _ in range(3):
        seen = watcher.poll()
        assert (seen.problem, seen.finished, seen.progress.paused) == ("", False, "me")
    assert len(slurm.arrays) == 1
    control.resume(edges, config.spec.id, log=log)
    slurm.state = FakeArray(alive=3)
    assert watcher.poll().problem == ""
    work(edges, config, tmp_path / "w")
    assert watcher.poll().finished


def test_a_worker_of_a_paused_job_leases_nothing(tmp_path: Path) -> None:
    edges, _, config = submitted(tmp_path)
    control.pause(edges, config.spec.id)
    work(edges, config, tmp_path / "w")
    assert read_progress(edges, config.spec.id).tasks == {"ready": 10}


def test_the_first_pause_stays_and_is_recorded_once(tmp_path: Path) -> None:
    edges, _, config = submitted(tmp_path)
    assert control.pause(edges, config.spec.id, actor="me").changed
    again = control.pause(edges, config.spec.id, actor="you")
    assert (again.changed, again.paused) == (False, "me")
    assert [event for event in actions(edges, config) if event[1] == "paused"] == [("me", "paused")]


def test_submit_of_a_paused_job_starts_no_workers(tmp_path: Path) -> None:
    edges, slurm, config = submitted(tmp_path)
    control.pause(edges, config.spec.id, actor="me")
    slurm.state = GONE
    lines: list[str] = []
    again = api.submit(edges, config, log=lines.append)
    assert (again.reattached, len(slurm.arrays)) == (True, 1)
    assert any("is paused by me; no workers are started" in line for line in lines)


def test_a_job_paused_between_plan_and_submission_gets_its_workers_on_resume(
    tmp_path: Path,
) -> None:
    slurm = FakeSlurm(refuse=ServiceError("ssh is down"))
    edges, config = services(slurm), make_config(tmp_path)
    with pytest.raises(ServiceError):
        api.submit(edges, config, log=log)
    slurm.refuse = None
    control.pause(edges, config.spec.id)
    assert api.submit(edges, config, log=log).slurm_job_ids == ()
    assert control.resume(edges, config.spec.id, log=log).workers == 3


@pytest.mark.parametrize(
    ("alive", "holders", "new"),
    [
        (0, 0, 3),  # all have left
        (3, 3, 0),  # all hold a task, and look again after it
        (3, 1, 2),  # two have seen the pause, and are on their way out
        (2, 0, 3),  # all are on their way out
    ],
)
def test_resume_replaces_the_workers_that_left(
    tmp_path: Path, alive: int, holders: int, new: int
) -> None:
    edges, slurm, config = submitted(tmp_path)
    control.pause(edges, config.spec.id)
    slurm.state = FakeArray(alive=alive)
    for number in range(holders):
        hold(edges, config, tmp_path / f"h{number}", f"100_{number}-r0-abc")
    resumed = control.resume(edges, config.spec.id, log=log)
    assert (resumed.changed, resumed.workers) == (True, new)
    assert len(slurm.arrays) == 1 + bool(new)


def test_resume_resets_a_breaker_that_a_handler_has_tripped(tmp_path: Path) -> None:
    edges, slurm, config = submitted(tmp_path)
    edges.jobs(config.spec.id).stop("the API key is wrong")
    slurm.state = GONE
    assert "the API key is wrong" in read_status(edges, config.spec.id).problem
    assert control.resume(edges, config.spec.id, log=log).workers == 3
    work(edges, config, tmp_path / "w")
    assert read_status(edges, config.spec.id).finished


def test_resume_of_a_job_that_runs_changes_nothing(tmp_path: Path) -> None:
    edges, slurm, config = submitted(tmp_path)
    resumed = control.resume(edges, config.spec.id, log=log)
    assert (resumed.changed, resumed.workers, len(slurm.arrays)) == (False, 0, 1)
    assert ("slurmctl", "resumed") not in actions(edges, config)


def test_resume_does_not_guess_whether_workers_are_left(tmp_path: Path) -> None:
    edges, slurm, config = submitted(tmp_path)
    control.pause(edges, config.spec.id)
    slurm.state = FakeArray(alive=0, unknown=True)
    with pytest.raises(ServiceError, match="does not know yet"):
        control.resume(edges, config.spec.id, log=log)
    assert read_progress(edges, config.spec.id).paused, "as it was"


@pytest.mark.parametrize("after", [False, True])
def test_a_resume_killed_at_any_request_is_finished_by_the_next(
    tmp_path: Path, after: bool
) -> None:
    points = 0
    while True:
        points += 1
        edges, slurm, config = submitted(tmp_path / str(points))
        control.pause(edges, config.spec.id)
        slurm.state = FakeArray(alive=2)  # on their way out
        try:
            control.resume(cut_at(edges, points, after=after), config.spec.id, log=log)
        except Cut:
            control.resume(edges, config.spec.id, log=log)
        else:
            break
        assert len(slurm.arrays) == 2, f"one array of new workers, cut at {points}"
        assert not read_progress(edges, config.spec.id).paused
    assert points > 10


def test_added_workers_run_in_addition_to_the_others(tmp_path: Path) -> None:
    edges, slurm, config = submitted(tmp_path)
    added = control.add_workers(edges, config.spec.id, 2, log=log, actor="me")
    assert (added.workers, added.slurm_job_ids) == (2, ("101",))
    assert ("me", "added workers") in actions(edges, config)
    row = edges.jobs(config.spec.id).get()
    assert read_spec(edges, row).workers == 5, "later rounds have them too"
    slurm.states = {"101": GONE}
    assert read_status(edges, config.spec.id).problem == "", "the first array is alive"
    assert api.submit(edges, config, log=log).reattached
    slurm.states = {"100": GONE, "101": GONE}
    assert "no worker of arrays 100, 101 is left" in read_status(edges, config.spec.id).problem


def test_no_more_workers_are_added_than_have_something_to_do(tmp_path: Path) -> None:
    edges, _, config = submitted(tmp_path)
    lines: list[str] = []
    assert control.add_workers(edges, config.spec.id, 50, log=lines.append).workers == 7
    assert "workers: 3 alive, with 10 unfinished tasks; adding only 7 more" in lines


def test_workers_that_would_be_idle_are_refused(tmp_path: Path) -> None:
    edges, slurm, config = submitted(tmp_path)
    slurm.state = FakeArray(alive=10)
    with pytest.raises(UserError, match="would have nothing to do"):
        control.add_workers(edges, config.spec.id, 1, log=log)
    work(edges, config, tmp_path / "w")
    with pytest.raises(UserError, match="needs no workers"):
        control.add_workers(edges, config.spec.id, 1, log=log)
    assert len(slurm.arrays) == 1


def test_a_paused_job_gets_no_workers_added(tmp_path: Path) -> None:
    edges, _, config = submitted(tmp_path)
    control.pause(edges, config.spec.id, actor="me")
    with pytest.raises(UserError, match="is paused by me; resume it first"):
        control.add_workers(edges, config.spec.id, 1, log=log)


@pytest.mark.parametrize("after", [False, True])
def test_adding_workers_killed_before_it_is_recorded_adds_once(tmp_path: Path, after: bool) -> None:
    points = 0
    while True:
        points += 1
        edges, slurm, config = submitted(tmp_path / str(points))
        try:
            control.add_workers(cut_at(edges, points, after=after), config.spec.id, 2, log=log)
        except Cut:
            last = edges.jobs(config.spec.id).submissions()[-1]
            if last.number == 2 and last.state is SubmitState.SUBMITTED:
                continue
            control.add_workers(edges, config.spec.id, 2, log=log)
        else:
            break
        assert len(slurm.arrays) == 2, f"cut at {points}"
    assert points > 10


def test_requested_workers_do_not_count_as_resubmissions(tmp_path: Path) -> None:
    edges, slurm, config = submitted(tmp_path)
    for _ in range(3):
        control.add_workers(edges, config.spec.id, 1, log=log)
    slurm.state = GONE
    assert api.resubmit(edges, config.spec.id, max_resubmits=1, log=log) is not None
    assert api.resubmit(edges, config.spec.id, max_resubmits=1, log=log) is None


def cut_short(folder: Path, **changes: Any) -> tuple[Services, FakeSlurm, Config]:
    """A job whose submitter died between ``sbatch`` and the row."""
    slurm = FakeSlurm(state=FakeArray(alive=3), lose_reply=True)
    edges, config = services(slurm), make_config(folder, **changes)
    with pytest.raises(ServiceError):
        api.submit(edges, config, log=log)
    return edges, slurm, config


def test_an_array_whose_id_was_never_recorded_is_cancelled(tmp_path: Path) -> None:
    edges, slurm, config = cut_short(tmp_path)
    assert control.cancel(edges, config.spec.id) == ["100"]
    assert slurm.cancelled == ["100"]
    assert edges.jobs(config.spec.id).submissions()[0].slurm_job_ids == ("100",)


def test_an_array_whose_id_was_never_recorded_is_queried_and_accounted(tmp_path: Path) -> None:
    edges, slurm, config = cut_short(tmp_path)
    seen = read_status(edges, config.spec.id)
    assert seen.array is not None
    assert (seen.array.alive, seen.problem) == (3, "")
    find_worker_failures(edges, config.spec.id)
    assert slurm.accounted == [["100"]]
    assert read_script(edges, config.spec.id) == slurm.scripts[0]
    assert "the end of job-1 2" in read_output(edges, config.spec.id, "100_2")
    edges.clock.sleep(3600)  # nobody continues
    slurm.state = GONE
    assert "no worker of array 100 is left" in read_status(edges, config.spec.id).problem


def test_a_cancel_ends_the_arrays_that_slurm_has_and_blocks_the_rest(
    tmp_path: Path,
) -> None:
    edges, slurm, config = cut_short(tmp_path, workers=6)
    jobs = edges.jobs(config.spec.id)
    edges.rows.delete(job_pk(config.spec.id), submit_sk(0, 1))
    intent = jobs.record_intent(0, 1, 6, 3)
    slurm.arrays = {job_name(config.spec.id, intent): "300"}
    assert control.cancel(edges, config.spec.id) == ["300"]
    assert slurm.withdrawn == {job_name(config.spec.id, intent, 1)}
    assert jobs.submissions()[0].slurm_job_ids == ("300",)


class PausedSlurm(FakeSlurm):
    """Somebody cancels the job when its submitter has reached a step."""

    def __init__(self, step: str, cancel: Callable[[], object]) -> None:
        super().__init__(state=FakeArray(alive=3))
        self._step, self._cancel = step, cancel

    def _paused(self, step: str) -> None:
        if step == self._step:
            self._step = ""
            self._cancel()

    def max_array_size(self) -> int:
        self._paused("before its intent")
        return super().max_array_size()

    def submit(self, name: str, script: str, folder: str) -> str:
        self._paused("before sbatch")
        found = super().submit(name, script, folder)
        self._paused("behind sbatch")
        return found


@pytest.mark.parametrize("step", ["before its intent", "before sbatch", "behind sbatch"])
def test_no_array_starts_after_a_cancel_wherever_its_submitter_was(
    tmp_path: Path, step: str
) -> None:
    config = make_config(tmp_path)
    slurm = PausedSlurm(step, lambda: control.cancel(edges, config.spec.id))
    edges = services(slurm)
    if step == "behind sbatch":
        api.submit(edges, config, log=log)
        assert slurm.cancelled == ["100"]
    else:
        with pytest.raises(UserError, match="was cancelled while its workers were being submitted"):
            api.submit(edges, config, log=log)
        assert slurm.arrays == {}
    slurm.state = GONE
    again = api.submit(edges, config, log=log)
    assert not again.reattached
    assert len(slurm.arrays) == (2 if step == "behind sbatch" else 1)


def test_workers_that_are_being_replaced_are_cancelled_too(tmp_path: Path) -> None:
    edges, slurm, config = submitted(tmp_path)
    slurm.state = GONE
    paused = PausedSlurm("before its intent", lambda: control.cancel(edges, config.spec.id))
    paused.arrays, paused.state = slurm.arrays, GONE
    beside = replace(edges, slurm=paused)  # type: ignore[arg-type]  # the fake has its verbs
    assert api.resubmit(beside, config.spec.id, max_resubmits=2, log=log) is None
    assert len(slurm.arrays) == 1
    assert api.resubmit(edges, config.spec.id, max_resubmits=2, log=log) is None


def test_cancelling_again_cancels_nothing(tmp_path: Path) -> None:
    edges, slurm, config = submitted(tmp_path)
    control.cancel(edges, config.spec.id)
    slurm.state = GONE
    assert control.cancel(edges, config.spec.id) == []
    assert slurm.cancelled == ["100"]


def test_a_second_cancel_applies_to_submissions_after_the_first(tmp_path: Path) -> None:
    edges, slurm, config = submitted(tmp_path)
    control.cancel(edges, config.spec.id)
    slurm.state = GONE
    paused = PausedSlurm("before its intent", lambda: control.cancel(edges, config.spec.id))
    paused.arrays, paused.state = slurm.arrays, GONE
    beside = replace(edges, slurm=paused)  # type: ignore[arg-type]  # the fake has its verbs
    with pytest.raises(UserError, match="was cancelled while its workers were being submitted"):
        api.submit(beside, config, log=log)
    assert list(slurm.arrays.values()) == ["100"]


def test_a_cancel_that_dies_anywhere_does_not_block_a_new_submit(tmp_path: Path) -> None:
    for at in range(100):
        edges, slurm, config = cut_short(tmp_path)
        slurm.arrays.clear()
        cancel = Call(edges, lambda own: control.cancel(own, config.spec.id))  # noqa: B023
        one_killed(cancel, at, Call(edges, lambda _own: None))
        with suppress(SubmissionCancelledError):
            api.submit(edges, config, log=log)
        api.submit(edges, config, log=log)
        assert list(slurm.arrays.values()) == ["100"], at
        if cancel.error is None:
            return
    raise AssertionError("it never ends")


def in_a_retry(folder: Path) -> tuple[Services, FakeSlurm, Config]:
    """A job whose retry's workers are at work; those of its first round have ended."""
    edges, slurm, config = submitted(folder)

    def fail(_item: dict[str, Any], _context: object) -> None:
        raise ItemError("network", "reset")

    world_of(edges, config, folder / "node", fail).worker().run()
    slurm.states["100"] = GONE
    api.retry(edges, config.spec.id, ["network"], log=log)
    return edges, slurm, config


def test_submit_uses_the_workers_of_a_retry(tmp_path: Path) -> None:
    edges, slurm, config = in_a_retry(tmp_path)
    again = api.submit(edges, config, log=log)
    assert (again.reattached, again.slurm_job_ids, again.round) == (True, ("101",), 1)
    assert list(slurm.arrays.values()) == ["100", "101"]


def test_a_wait_sees_the_workers_that_submit_gave_to_a_retry(tmp_path: Path) -> None:
    edges, slurm, config = in_a_retry(tmp_path)
    slurm.states["101"] = GONE
    assert read_status(edges, config.spec.id).workers_gone
    assert api.submit(edges, config, log=log).slurm_job_ids == ("102",)
    assert read_status(edges, config.spec.id).problem == ""


def test_a_wait_sees_the_workers_after_a_cancelled_retry_wherever_it_died(
    tmp_path: Path,
) -> None:
    for at in range(60, 140, 4):
        edges, slurm, config = submitted(tmp_path / str(at))

        def fail(_item: dict[str, Any], _context: object) -> None:
            raise ItemError("network", "reset")

        world_of(edges, config, tmp_path / str(at) / "node", fail).worker().run()
        slurm.states["100"] = GONE
        retry = Call(edges, lambda own: api.retry(own, config.spec.id, ["network"], log=log))  # noqa: B023
        one_killed(retry, at, Call(edges, lambda _own: None))
        edges.readers.clear()
        control.cancel(edges, config.spec.id)
        slurm.states.update(dict.fromkeys(slurm.arrays.values(), GONE))
        api.submit(edges, config, log=log)
        assert read_status(edges, config.spec.id).problem == "", at


def test_a_cancel_applies_to_a_process_at_an_earlier_round(tmp_path: Path) -> None:
    edges, slurm, config = in_a_retry(tmp_path)
    slurm.states["101"] = GONE
    jobs = edges.jobs(config.spec.id)
    assert jobs.submissions()[-1].round_no == 1
    control.cancel(edges, config.spec.id)
    late = jobs.record_intent(0, 2, 3, 1001)
    assert late.empty
    assert list(slurm.arrays.values()) == ["100", "101"]


def test_refused_additional_workers_do_not_replace_the_running_ones(
    tmp_path: Path,
) -> None:
    edges, slurm, config = submitted(tmp_path)
    slurm.refuse = SubmitRefusedError("slurm: sbatch refused the array: QOS")
    with pytest.raises(SubmitRefusedError):
        control.add_workers(edges, config.spec.id, 2, log=log)
    slurm.refuse = None
    again = api.submit(edges, config, log=log)
    assert (again.reattached, again.slurm_job_ids) == (True, ("100",))
    slurm.state = GONE
    assert api.submit(edges, config, log=log).slurm_job_ids == ("101",)


def test_a_cancel_that_slurm_did_not_carry_out_is_an_error(tmp_path: Path) -> None:
    class Deaf(FakeSlurm):
        def cancel(self, arrays: Collection[ArrayKey]) -> list[ArrayKey]:
            raise ServiceError(
                "cluster: workers of array 100 still wait or run after scancel; try again"
            )

    slurm = Deaf(state=FakeArray(alive=3))
    edges, config = services(slurm), make_config(tmp_path)
    api.submit(edges, config, log=log)
    with pytest.raises(ServiceError, match="still wait or run"):
        control.cancel(edges, config.spec.id)
    assert ("slurmctl", "cancelled") not in actions(edges, config)


def test_the_status_of_a_job_cancelled_before_it_had_workers_says_so(tmp_path: Path) -> None:
    edges, slurm, config = cut_short(tmp_path)
    slurm.arrays.clear()
    control.cancel(edges, config.spec.id)
    assert "cancelled before Slurm had its workers" in read_status(edges, config.spec.id).problem


def test_a_submit_names_cancelled_workers_that_have_not_ended(
    tmp_path: Path,
) -> None:
    edges, slurm, config = submitted(tmp_path)
    control.cancel(edges, config.spec.id)
    again = api.submit(edges, config, log=log)
    assert (again.reattached, again.slurm_job_ids, again.workers) == (True, ("100",), 3)
    assert len(slurm.arrays) == 1

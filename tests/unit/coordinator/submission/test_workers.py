"""How many workers are submitted, and in how many arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config
from airflow_slurm_provider.coordinator.status.logs import read_output, read_script
from airflow_slurm_provider.coordinator.status.progress import read_status
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.coordinator.ttl_cache import TTLCache
from airflow_slurm_provider.slurm.client import SubmitLimitError, SubmitRefusedError
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol.keys import JobId, job_pk, submit_sk
from tests.unit.coordinator.fakes import FakeArray, FakeSlurm, make_config, services, world_of


def submit(edges: Services, config: Config, said: list[str] | None = None) -> api.SubmitResult:
    return api.submit(edges, config, log=(said if said is not None else []).append)


def sizes(slurm: FakeSlurm) -> list[int]:
    return [1 + int(re.findall(r"--array=0-(\d+)", script)[0]) for script in slurm.scripts]


def test_more_workers_than_an_array_may_hold_are_several_arrays(tmp_path: Path) -> None:
    slurm = FakeSlurm(array_size=3)
    submitted = submit(services(slurm), make_config(tmp_path, workers=8))
    assert sizes(slurm) == [3, 3, 2]
    assert submitted.slurm_job_ids == ("100", "101", "102")
    assert submitted.workers == 8
    assert len(set(slurm.arrays)) == 3


def test_an_interrupted_submission_of_several_arrays_is_completed_once(
    tmp_path: Path,
) -> None:
    slurm = FakeSlurm(array_size=3)
    edges, config = services(slurm), make_config(tmp_path, workers=8)
    slurm.lose_reply = True
    with pytest.raises(ServiceError):
        submit(edges, config)
    assert submit(edges, config).slurm_job_ids == ("100", "101", "102")
    assert len(slurm.arrays) == 3


def test_an_array_whose_reply_was_lost_is_found_after_a_refused_login(
    tmp_path: Path,
) -> None:
    slurm = FakeSlurm(lose_reply=True)
    edges, config = services(slurm), make_config(tmp_path)
    with pytest.raises(ServiceError):
        submit(edges, config)
    slurm.refuse = UserError("cluster: the login was refused")
    with pytest.raises(UserError, match="login"):
        submit(edges, config)
    slurm.refuse = None
    assert submit(edges, config).slurm_job_ids == ("100",)
    assert len(slurm.arrays) == 1


@dataclass
class Choosy(FakeSlurm):
    """Refuses more arrays than so many."""

    most: int = 1

    def submit(self, name: str, script: str, folder: str) -> str:
        if name not in self.arrays and len(self.arrays) == self.most:
            raise SubmitRefusedError("slurm: sbatch refused the array")
        return super().submit(name, script, folder)


def test_an_accepted_array_is_found_if_the_next_one_was_refused(
    tmp_path: Path,
) -> None:
    slurm = Choosy(array_size=3)
    edges, config = services(slurm), make_config(tmp_path, workers=6)
    with pytest.raises(SubmitRefusedError):
        submit(edges, config)
    slurm.most = 2
    assert submit(edges, config).slurm_job_ids == ("100", "101")


def test_several_arrays_are_watched_and_cancelled_together(tmp_path: Path) -> None:
    slurm = FakeSlurm(array_size=3)
    edges, config = services(slurm), make_config(tmp_path, workers=6)
    submitted = submit(edges, config)
    slurm.state = FakeArray(alive=2)
    seen = read_status(edges, config.spec.id)
    assert seen.array is not None
    assert (seen.array.alive, seen.array.counts()) == (4, {"RUNNING": 4})
    assert control.cancel(edges, config.spec.id) == list(submitted.slurm_job_ids)
    slurm.state = FakeArray(alive=0)
    seen = read_status(edges, config.spec.id)
    assert "no worker of arrays 100, 101 is left" in seen.problem
    assert submit(edges, config).slurm_job_ids == ("102", "103")


def test_the_output_of_each_array_is_found(tmp_path: Path) -> None:
    slurm = FakeSlurm(array_size=3)
    edges, config = services(slurm), make_config(tmp_path, workers=6)
    submit(edges, config)
    assert read_output(edges, config.spec.id, "101_2") == "the end of job-1 2\n"


def test_the_batch_script_is_that_of_the_latest_array(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    edges, config = services(slurm), make_config(tmp_path)
    submit(edges, config)
    slurm.state = FakeArray(alive=0)
    submit(edges, config)
    assert len(slurm.scripts) == 2
    assert read_script(edges, config.spec.id) == slurm.scripts[1]


@pytest.mark.parametrize(("room", "taken"), [(8, [8]), (7, [4]), (5, [4]), (1, [1])])
def test_as_many_workers_are_submitted_as_the_account_may_have(
    tmp_path: Path, room: int, taken: list[int]
) -> None:
    slurm = FakeSlurm(room=room)
    said: list[str] = []
    submitted = submit(services(slurm), make_config(tmp_path, workers=8), said)
    assert sizes(slurm) == taken
    assert submitted.workers == sum(taken)
    assert any("SubmitJobLimit; trying 4 workers instead of 8" in line for line in said) == (
        room < 8
    )


def test_a_full_account_is_reported_and_the_next_submit_continues(tmp_path: Path) -> None:
    slurm = FakeSlurm(room=0)
    edges, config = services(slurm), make_config(tmp_path, workers=4)
    with pytest.raises(SubmitLimitError):
        submit(edges, config)
    slurm.room = 10
    assert submit(edges, config).workers == 4


def test_the_second_array_takes_the_room_that_the_first_has_left(tmp_path: Path) -> None:
    slurm = FakeSlurm(array_size=3, room=4)
    submitted = submit(services(slurm), make_config(tmp_path, workers=9))
    assert (sizes(slurm), submitted.workers) == ([3, 1], 4)


def test_there_are_no_more_workers_than_tasks(tmp_path: Path) -> None:
    slurm = FakeSlurm()
    assert submit(services(slurm), make_config(tmp_path, items=10, workers=8)).workers == 2


@pytest.mark.parametrize(
    ("limit", "worker", "workers"),
    [
        ({"rate": "6/min"}, {}, 7),  # 0.1/s, at most 60 s each, and a burst of 1
        ({"rate": "1/s"}, {"item_timeout": "5s"}, 6),
        ({"rate": "1/s"}, {"item_timeout": "5s", "concurrency": 2, "processes": 2}, 2),
        ({"rate": "100/s"}, {}, 8),
    ],
)
def test_there_are_no_more_workers_than_a_limit_keeps_busy(
    tmp_path: Path, limit: dict[str, object], worker: dict[str, object], workers: int
) -> None:
    said: list[str] = []
    config = make_config(tmp_path, workers=8, limits={"api": limit}, worker=worker)
    assert submit(services(FakeSlurm()), config, said).workers == workers
    assert any("limit 'api'" in line for line in said) == (workers < 8)


@dataclass
class Losing(FakeSlurm):
    """While an array is accepted, its intent's row is lost, and perhaps intended again."""

    edges: Services | None = None
    again: bool = False

    def submit(self, name: str, script: str, folder: str) -> str:
        found = super().submit(name, script, folder)
        if self.edges is not None:
            edges, self.edges = self.edges, None
            edges.rows.delete(job_pk(JobId(folder)), submit_sk(0, 1))
            if self.again:
                edges.jobs(JobId(folder)).record_intent(0, 1, 2, 1001)
        return found


def test_an_array_whose_intent_was_lost_meanwhile_has_a_row_again(tmp_path: Path) -> None:
    slurm = Losing()
    edges, config = services(slurm), make_config(tmp_path)
    slurm.edges = edges
    assert submit(edges, config).slurm_job_ids == ("100",)
    (row,) = edges.jobs(config.spec.id).submissions()
    assert (row.slurm_job_ids, slurm.cancelled) == (("100",), [])
    assert next(iter(slurm.arrays)).endswith(row.token)


def test_of_two_arrays_for_one_submission_one_is_cancelled(tmp_path: Path) -> None:
    slurm = Losing(again=True)
    edges, config = services(slurm), make_config(tmp_path)
    slurm.edges = edges
    assert submit(edges, config).slurm_job_ids == ("101",)
    (row,) = edges.jobs(config.spec.id).submissions()
    assert (row.slurm_job_ids, slurm.cancelled) == (("101",), ["100"])


def test_of_two_calls_with_one_intent_the_one_with_more_arrays_is_recorded(
    tmp_path: Path,
) -> None:
    edges, config = services(FakeSlurm()), make_config(tmp_path)
    submit(edges, config)
    jobs = edges.jobs(config.spec.id)
    intent = jobs.record_intent(0, 2, 4, 2)
    for ids in (["7"], ["7", "8"], ["7"]):
        standing = jobs.record_submitted(intent, ids)
    assert standing is not None
    assert standing.slurm_job_ids == ("7", "8")


def test_a_refused_intent_gets_new_numbers_under_the_same_token(tmp_path: Path) -> None:
    edges, config = services(FakeSlurm()), make_config(tmp_path)
    submit(edges, config)
    jobs = edges.jobs(config.spec.id)
    first = jobs.record_intent(0, 2, 500, 1001)
    assert jobs.record_intent(0, 2, 10, 1001) == first, "it may be accepted yet"
    jobs.record_refusal(first)
    second = jobs.record_intent(0, 2, 10, 1001)
    assert (second.workers, second.token, second.refused) == (10, first.token, False)
    jobs.record_submitted(second, ["7"])
    jobs.record_refusal(first)
    assert jobs.submissions()[-1].slurm_job_ids == ("7",)
    assert not jobs.submissions()[-1].refused


def test_a_refused_resubmission_is_carried_out_by_the_next_poll(tmp_path: Path) -> None:
    slurm = Choosy()
    edges, config = services(slurm), make_config(tmp_path)
    submit(edges, config)
    slurm.state = FakeArray(alive=0)
    with pytest.raises(SubmitRefusedError):
        api.resubmit(edges, config.spec.id, max_resubmits=1, log=lambda _: None)
    assert read_status(edges, config.spec.id).workers_gone
    slurm.most = 2
    workers = api.resubmit(edges, config.spec.id, max_resubmits=1, log=lambda _: None)
    assert workers is not None
    assert workers.slurm_job_ids == ("101",)


def test_workers_that_finish_during_a_submit_are_not_replaced(
    tmp_path: Path,
) -> None:
    slurm = FakeSlurm()
    edges, config = services(slurm), make_config(tmp_path)
    submit(edges, config)
    slurm.state = FakeArray(alive=0)
    world = world_of(edges, config, tmp_path / "node", lambda item, _: item)

    class Late(FakeSlurm):
        def together(self, slurm_job_ids: Sequence[str]) -> Any:
            world.worker().run()
            return slurm.together(slurm_job_ids)

    late = replace(edges, slurm=Late(arrays=slurm.arrays), readers=TTLCache())  # type: ignore[arg-type]
    assert submit(late, config).reattached
    assert len(slurm.arrays) == 1

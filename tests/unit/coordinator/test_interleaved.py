"""Whatever order two calls of one job take their steps in, the right one ends whole."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from airflow_slurm_provider.coordinator import api, spec_store
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.slurm.client import SubmitRefusedError
from slurm_worker.errors import ItemError, UserError
from slurm_worker.protocol.keys import JobId, JobState, RoundState, SubmitState, TaskState, draft_of
from slurm_worker.testing import MemoryObjects
from tests.unit.coordinator.fakes import FakeArray, FakeSlurm, make_config, services, world_of
from tests.unit.coordinator.interleave import (
    Call,
    Killed,
    both_suspended,
    one_killed,
    one_suspended,
)

JOB = JobId("job-1")
ITEMS = 10


def lines(word: str, count: int = ITEMS) -> bytes:
    rows = [json.dumps({"id": f"k{n}", "n": f"{word}{n}"}) for n in range(count)]
    return ("\n".join(rows) + "\n").encode()


GOOD = lines("good")
DUPLICATE = lines("bad") + b'{"id": "k3", "n": 3}\n'
TORN = lines("bad", 9) + b'{"id": "k9", "n": '


@dataclass
class Refusing:
    """The cluster for a caller whose options it refuses; it knows what others have submitted."""

    slurm: FakeSlurm

    def __getattr__(self, name: str) -> Any:
        return getattr(self.slurm, name)

    def submit(self, name: str, script: str, folder: str) -> str:
        if name in self.slurm.arrays:
            return self.slurm.arrays[name]
        raise SubmitRefusedError("slurm: sbatch refused the array: invalid partition")


@dataclass
class Site:
    """One table, bucket and cluster; each caller may find another input under the same name."""

    config: Config
    slurm: FakeSlurm = field(default_factory=FakeSlurm)
    services: Services = field(init=False)

    def __post_init__(self) -> None:
        self.services = services(self.slurm)

    def submit(self, data: bytes = GOOD, *, refused: bool = False, **changes: Any) -> Call:
        inputs = MemoryObjects()
        inputs.put("in/items.jsonl", data)
        inputs.put("in/other.jsonl", data)
        edges = replace(self.services, bucket=lambda _name: inputs)
        if refused:
            edges = replace(edges, slurm=Refusing(self.slurm))  # type: ignore[arg-type]
        spec = self.config.spec.model_copy(update=changes)
        config = replace(self.config, spec=spec)
        return Call(edges, lambda own: api.submit(own, config, log=lambda _: None))

    def check(self, word: str = "good") -> None:
        """The job is whole: its plan, its rows, its objects, and one array that is known."""
        jobs = self.services.jobs(JOB)
        row = jobs.find()
        assert row is not None
        (first,) = jobs.rounds()
        assert (row.state, row.rounds, first.state) == (JobState.OPEN, 1, RoundState.OPEN)
        assert (first.tasks, first.items) == (2, ITEMS)
        tasks = list(self.services.tasks(row).rows_of_round(0))
        assert [draft_of(task.where.segment) for task in tasks] == [row.draft] * 2
        slices = [self.services.store(JOB).read_slice(0, task.where) for task in tasks]
        read = [items.take(position) for items in slices for position in range(len(items))]
        assert [item["n"] for item in read] == [f"{word}{n}" for n in range(ITEMS)]
        assert list(self.services.rows.query("JOBS")) != []
        (submission,) = jobs.submissions()
        assert submission.state is SubmitState.SUBMITTED
        assert list(self.slurm.arrays.values()) == list(submission.slurm_job_ids) == ["100"]


@pytest.fixture
def new_site(tmp_path: Path) -> Callable[[], Site]:
    where = {"path": "s3://lab/in/items.jsonl", "key": "id"}
    config = make_config(tmp_path, input=where)
    return lambda: Site(config)


def steps_of(new_call: Callable[[], Call]) -> range:
    """Every step of a call that nobody disturbs, and one more."""
    call = new_call()
    call.run()
    return range(call.steps.seen + 1)


@pytest.mark.parametrize("data", [DUPLICATE, TORN])
def test_a_refused_input_does_not_disturb_a_right_submit(
    new_site: Callable[[], Site], data: bytes
) -> None:
    for at in steps_of(lambda: new_site().submit(data)):
        site = new_site()
        wrong, right = site.submit(data), site.submit()
        one_suspended(wrong, at, right)
        assert right.error is None, at
        site.check()
    for at in steps_of(lambda: new_site().submit()):
        site = new_site()
        wrong, right = site.submit(data), site.submit()
        one_suspended(right, at, wrong)
        assert right.error is None, at
        site.check()


def test_a_corrected_submit_works_wherever_an_earlier_one_died(
    new_site: Callable[[], Site],
) -> None:
    for at in steps_of(lambda: new_site().submit(DUPLICATE)):
        site = new_site()
        right = site.submit()
        one_killed(site.submit(DUPLICATE), at, right)
        assert right.error is None, at
        site.check()


def test_a_submit_that_dies_anywhere_is_finished_by_the_next(
    new_site: Callable[[], Site],
) -> None:
    for at in steps_of(lambda: new_site().submit()):
        site = new_site()
        first, second = site.submit(), site.submit()
        one_killed(first, at, second)
        assert isinstance(first.error, Killed | None), at
        assert second.error is None, at
        site.check()


def test_a_refused_array_does_not_disturb_an_accepted_one(
    new_site: Callable[[], Site],
) -> None:
    for at in steps_of(lambda: new_site().submit(refused=True)):
        site = new_site()
        right = site.submit()
        one_suspended(site.submit(refused=True), at, right)
        assert right.error is None, at
        site.check()
    for at in steps_of(lambda: new_site().submit()):
        site = new_site()
        right = site.submit()
        one_suspended(right, at, site.submit(refused=True))
        assert right.error is None, at
        site.check()
    for at in steps_of(lambda: new_site().submit(refused=True)):
        site = new_site()
        right = site.submit()
        one_killed(site.submit(refused=True), at, right)
        assert right.error is None, at
        site.check()


def test_later_workers_do_not_get_a_refused_configuration(
    new_site: Callable[[], Site],
) -> None:
    for at in steps_of(lambda: new_site().submit(refused=True, slurm={"partition": "nope"})):
        site = new_site()
        right = site.submit(slurm={"partition": "right"})
        wrong = site.submit(refused=True, slurm={"partition": "nope"})
        one_suspended(wrong, at, right)
        site.check()
        if isinstance(wrong.error, SubmitRefusedError):
            config = site.services.jobs(JOB).get().config
            document = site.services.objects.get(site.services.paths(JOB).config(config)) or b""
            assert json.loads(document)["spec"]["slurm"] == {"partition": "right"}, at


def test_two_right_submits_make_one_plan_and_one_array(new_site: Callable[[], Site]) -> None:
    for at in steps_of(lambda: new_site().submit()):
        site = new_site()
        first, second = site.submit(), site.submit()
        one_suspended(first, at, second)
        assert (first.error, second.error) == (None, None), at
        site.check()
        used = {site.services.paths(JOB).draft_in(key) for key in segments(site)}
        assert used == {site.services.jobs(JOB).get().draft}, "the other draft is gone"


def test_the_first_plan_decides_the_bundle_if_no_submit_names_one(
    new_site: Callable[[], Site],
) -> None:
    def submit(site: Site, workers: int) -> Call:
        return site.submit(bundle=None, workers=workers)

    for at in steps_of(lambda: submit(new_site(), 1)):
        site = new_site()
        first, second = submit(site, 1), submit(site, 3)
        one_suspended(first, at, second)
        assert (first.error, second.error) == (None, None), at
        jobs = site.services.jobs(JOB)
        bundle = spec_store.read_spec(site.services, jobs.get()).bundle
        assert bundle in (1, 3), at
        assert jobs.rounds()[0].tasks == -(-ITEMS // bundle), at


def segments(site: Site) -> Iterator[str]:
    return site.services.objects.list(site.services.paths(JOB).segments_folder)


@pytest.mark.parametrize("wrong", [{"data": DUPLICATE}, {"refused": True}])
def test_two_submits_that_are_each_suspended_once(
    new_site: Callable[[], Site], wrong: dict[str, Any]
) -> None:
    of_wrong = steps_of(lambda: new_site().submit(**wrong))
    of_right = steps_of(lambda: new_site().submit())
    for at in of_wrong[::5]:
        for other_at in of_right[at % 3 :: 7]:
            site = new_site()
            right = site.submit()
            both_suspended(site.submit(**wrong), at, right, other_at)
            assert right.error is None, (at, other_at)
            site.check()


def test_of_two_inputs_under_one_id_one_is_refused_and_changes_nothing(
    new_site: Callable[[], Site],
) -> None:
    def other(site: Site) -> Call:
        where = site.config.spec.input.model_copy(update={"path": "s3://lab/in/other.jsonl"})
        return site.submit(lines("other"), input=where)

    for at in steps_of(lambda: other(new_site())):
        site = new_site()
        first, second = other(site), site.submit()
        one_suspended(first, at, second)
        (refused,) = [process.error for process in (first, second) if process.error is not None]
        assert isinstance(refused, UserError), at
        assert "exists with another input" in str(refused), at
        site.check("other" if second.error else "good")


def test_a_job_submitted_twice_is_published_once_and_completely(
    new_site: Callable[[], Site], tmp_path: Path
) -> None:
    site = new_site()
    wrong = site.submit(DUPLICATE)
    one_suspended(wrong, 12, site.submit())
    world_of(site.services, site.config, tmp_path / "node", lambda item, _: item).worker().run()
    manifest = api.aggregate(site.services, JOB, log=lambda _: None)
    data = site.services.objects.get(manifest["files"][0]["key"]) or b""
    values = pq.read_table(io.BytesIO(data)).column("n").to_pylist()
    assert values == [f"good{n}" for n in range(ITEMS)]


# --- retries ------------------------------------------------------------------


def fail_two(item: dict[str, Any], _context: object) -> dict[str, Any]:
    if item["id"] in ("k2", "k7"):
        raise ItemError("network", "reset")
    return item


@pytest.fixture
def failed(new_site: Callable[[], Site], tmp_path: Path) -> Callable[[], Site]:
    """A job of which two items have failed; a new one each time."""
    made = iter(range(1_000_000))

    def new() -> Site:
        site = new_site()
        site.submit().run()
        node = tmp_path / f"node-{next(made)}"
        world_of(site.services, site.config, node, fail_two).worker().run()
        site.slurm.states["100"] = FakeArray(alive=0)
        return site

    return new


def retry(site: Site) -> Call:
    return Call(site.services, lambda own: api.retry(own, JOB, ["network"], log=lambda _: None))


def check_round(site: Site) -> None:
    jobs = site.services.jobs(JOB)
    _, second = jobs.rounds()
    assert (second.state, second.items, second.retried) == (RoundState.OPEN, 2, {"network": 2})
    (task,) = site.services.tasks(jobs.get()).rows_of_round(1)
    assert task.state is TaskState.READY
    assert site.services.store(JOB).read_slice(1, task.where).keys == ["k2", "k7"]
    assert [submission.round_no for submission in jobs.submissions()] == [0, 1]
    assert len(site.slurm.arrays) == 2


@pytest.mark.parametrize("how", [one_suspended, one_killed])
def test_two_retries_make_one_round(
    failed: Callable[[], Site], how: Callable[[Call, int, Call], None]
) -> None:
    for at in steps_of(lambda: retry(failed()))[::4]:
        site = failed()
        second = retry(site)
        how(retry(site), at, second)
        assert second.error is None, at
        check_round(site)


def test_refused_additional_workers_are_not_intended_again(
    new_site: Callable[[], Site], tmp_path: Path
) -> None:
    site = new_site()
    site.submit(workers=1).run()
    edges = replace(site.services, slurm=Refusing(site.slurm))  # type: ignore[arg-type]
    before = site.services.jobs(JOB).get().config
    with pytest.raises(SubmitRefusedError):
        control.add_workers(edges, JOB, 1, log=lambda _: None)
    assert site.services.jobs(JOB).get().config == before
    added = control.add_workers(site.services, JOB, 1, log=lambda _: None)
    assert added.workers == 1
    assert [submission.label for submission in site.services.jobs(JOB).submissions()] == [
        "000-1",
        "000-2",
    ]

"""A snapshot that reads only what may have changed equals one that reads every row."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.progress import progress_of
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot, read_snapshot
from airflow_slurm_provider.coordinator.ttl_cache import TTLCache
from slurm_worker.errors import ErrorClass
from slurm_worker.node.task_finder import Found, TaskFinder
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.job_store import JobStore, Marker
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.job_totals import MOST_BUCKETS, JobTotals
from slurm_worker.protocol.keys import JobId, TaskState, halves
from slurm_worker.protocol.shard_progress import ShardTotals
from slurm_worker.protocol.slices import Slice
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import Lease, TaskRow
from slurm_worker.testing import ManualClock, MemoryObjects, MemoryRows
from tests.unit.coordinator.fakes import services as new_services

JOB = JobId("job-1")
LEASE = LeaseConfig(ttl_s=120.0, heartbeat_s=30.0, margin_s=15.0, max_lost=2)


@dataclass
class Job:
    """A job whose workers are led by the test."""

    services: Services = field(default_factory=new_services)
    shards: int = 8
    random: random.Random = field(default_factory=lambda: random.Random(1))
    held: list[Lease] = field(default_factory=list)
    finders: dict[str, TaskFinder] = field(default_factory=dict)
    rounds: int = 0

    @property
    def rows(self) -> MemoryRows:
        assert isinstance(self.services.rows, MemoryRows)
        return self.services.rows

    @property
    def clock(self) -> ManualClock:
        assert isinstance(self.services.clock, ManualClock)
        return self.services.clock

    @property
    def table(self) -> TaskTable:
        return TaskTable(self.rows, JOB, self.shards, LEASE, self.clock)

    @property
    def jobs(self) -> JobTable:
        return self.services.jobs(JOB)

    @property
    def sums(self) -> ShardTotals:
        store = JobStore(self.services.objects, self.services.paths(JOB))
        return ShardTotals(store, self.jobs, self.table)

    def plan(self, tasks: int) -> None:
        self.jobs.create("identity", "config", self.shards)
        number = self.rounds
        self.jobs.create_round(number, "test")
        for sequence in range(tasks):
            self.table.create(number, sequence, Slice(0, 0, 1, 4, "0" * 64))
        self.jobs.advance_cursor(number, tasks)
        self.jobs.open_round(number, tasks, 4 * tasks, {})
        self.rounds += 1
        self.jobs.open(self.rounds)

    def claim(self) -> bool:
        name = f"w{self.random.randrange(9)}"
        if name not in self.finders:
            self.finders[name] = TaskFinder(
                self.table, name, self.clock, self.random, moved=self.sums.cursor_advanced
            )
        finder = self.finders[name]
        finder.new_generation(self.rounds)
        found = finder.next()
        if isinstance(found, Found):
            self.held.append(found.lease)
        return isinstance(found, Found)

    def steal(self) -> None:
        """The lease that was taken first runs out, and another worker has it."""
        if self.held:
            lease = self.held.pop(0)
            self.clock.advance(LEASE.ttl_s + LEASE.margin_s + 1)
            row = self.table.find(lease.task)
            assert row is not None
            taken = self.table.steal(row, "thief")
            if hasattr(taken, "lease"):
                self.held.append(taken.lease)

    def complete(self, failed: int) -> None:
        if self.held:
            lease = self.held.pop(self.random.randrange(len(self.held)))
            self.clock.advance(self.random.choice([0.5, 3, 40]))
            if lease.to_bisect(LEASE.max_lost):
                split = halves(lease.task) or ()
                self.table.create_halves(lease.row)
                self.table.complete(self.marker(lease, 0, 0, split=split))
            else:
                self.table.complete(self.marker(lease, lease.row.where.count, failed))

    def marker(self, lease: Lease, items: int, failed: int, **changes: object) -> Marker:
        failed = min(failed, items)
        now = self.clock.now()
        marker = Marker(
            job=JOB,
            task=lease.task,
            attempt=lease.attempt,
            worker=lease.owner,
            items=items,
            ok=items - failed,
            rows=items - failed,
            failed={"network": failed} if failed else {},
            slurm={"node": f"n{len(lease.owner)}"},
            started=now - self.random.random() * 60,
            finished=now,
            requests={"s3_put": 2},
        )
        return replace(marker, **changes)  # type: ignore[arg-type]  # the test's own names

    def fail(self, *, final: bool) -> None:
        if self.held:
            lease = self.held.pop()
            self.table.fail(lease, ErrorClass.NODE_FAILURE, "gone", 0.0, final=final)

    def release(self) -> None:
        if self.held:
            self.table.release(self.held.pop())

    def reopen(self) -> None:
        """A retry puts failed tasks back, and plans a round of failed items."""
        rows = [row for row in self.all_rows() if row.state.terminal]
        ended = [row for row in rows if row.state is not TaskState.DONE]
        for row in ended:
            self.table.reopen(row, self.jobs.get().rounds)
        if self.rounds < 3:
            self.plan(self.random.randrange(12))

    def all_rows(self) -> Iterator[TaskRow]:
        for shard in range(self.shards):
            yield from self.table.all_rows(shard)

    def new_process(self, *, unseen: bool = False) -> None:
        """The next snapshot is a new process's first; with `unseen`, no process has stored one."""
        self.services = replace(self.services, readers=TTLCache())
        if unseen:
            self.services.objects.delete(self.services.paths(JOB).progress)

    def look(self) -> Snapshot:
        return read_snapshot(self.services, JOB)

    def check(self, seen: Snapshot) -> None:
        rows = list(self.all_rows())
        done = [row for row in rows if row.state is TaskState.DONE]
        assert seen.tasks == dict(Counter(row.state.value for row in rows))
        assert {row.sk for row in seen.leased} == {lease.row.sk for lease in self.held}
        assert seen.lost == sum(row.lost for row in rows)
        whole = JobTotals()
        for row in done:
            whole.add_row(row)
        assert seen.done.to_dict() == whole.to_dict()


STEPS = st.lists(
    st.sampled_from(
        ["claim", "claim", "complete", "complete bad", "fail", "fail final", "release"]  # noqa: RUF005
        + ["steal", "reopen", "look", "new process", "unseen", "sum"]
    ),
    max_size=50,
)


@given(steps=STEPS, seed=st.integers(0, 1000), tasks=st.integers(1, 120))
def test_whatever_workers_do_a_snapshot_equals_a_full_read(
    steps: list[str], seed: int, tasks: int
) -> None:
    job = Job(random=random.Random(seed), shards=2)
    job.plan(tasks)
    for step in steps:
        if step == "claim":
            job.claim()
        elif step.startswith("complete"):
            job.complete(3 if step.endswith("bad") else 0)
        elif step.startswith("fail"):
            job.fail(final=step.endswith("final"))
        elif step == "release":
            job.release()
        elif step == "steal":
            job.steal()
        elif step == "reopen":
            job.reopen()
        elif step == "sum":
            job.sums.update(job.random.randrange(job.shards))
        else:
            if step != "look":
                job.new_process(unseen=step == "unseen")
            job.check(job.look())
    job.check(job.look())


def finish(job: Job, most: int) -> int:
    """Have workers do up to so many tasks."""
    count = 0
    while count < most and job.claim():
        job.complete(0)
        count += 1
    return count


def test_only_rows_that_may_have_changed_are_read() -> None:
    job = Job(shards=2)
    job.plan(6000)
    first = job.look()
    job.check(first)
    assert first.rows_read == 2 * 100, "nobody can have touched the others"
    finish(job, 300)
    seen = job.look()
    job.check(seen)
    finish(job, 10)
    again = job.look()
    job.check(again)
    assert again.rows_read < 800


@pytest.mark.parametrize("summed_up", [False, True])
def test_halves_of_bisected_tasks_are_found_after_untouched_tasks(
    summed_up: bool,
) -> None:
    job = Job(shards=1)
    job.plan(400)
    job.claim()
    for _ in range(LEASE.max_lost):
        job.steal()
    job.complete(0)
    if summed_up:
        finish(job, 200)
        job.sums.update(0)
    seen = job.look()
    assert seen.tasks["ready"] + seen.tasks["done"] == 402
    job.check(seen)


@pytest.mark.parametrize("read_before", [0, 500])
def test_rows_that_workers_have_summed_up_since_the_last_snapshot_are_not_read(
    read_before: int,
) -> None:
    job = Job(shards=2)
    job.plan(6000)
    if read_before:
        finish(job, read_before)
        job.look()
        job.new_process()
    finish(job, 5000)
    seen = job.look()
    job.check(seen)
    assert seen.rows_read < 1_000


def test_workers_totals_of_an_earlier_job_of_the_same_name_are_ignored() -> None:
    job = Job(shards=1)
    job.plan(200)
    finish(job, 200)
    job.sums.update(0)
    other = Job(services=replace(new_services(), objects=job.services.objects), shards=1)
    other.clock.advance(5)
    other.plan(40)
    assert other.look().tasks == {"ready": 40}


def test_workers_totals_continue_after_failed_tasks() -> None:
    job = Job(shards=1)
    job.plan(300)
    for _ in range(3):
        job.claim()
        job.fail(final=True)
    finish(job, 297)
    job.sums.update(0)
    seen = job.look()
    job.check(seen)
    assert (seen.rows_read, seen.tasks) == (3, {"done": 297, "failed": 3})


def test_a_done_job_is_read_once_and_not_again_by_a_new_process() -> None:
    job = Job()
    job.plan(800)
    finish(job, 800)
    assert job.look().rows_read == 800
    assert job.look().rows_read == 0
    job.new_process()
    seen = job.look()
    assert seen.rows_read == 0
    job.check(seen)


def test_stored_totals_continue_after_failed_tasks() -> None:
    job = Job(shards=1)
    job.plan(600)
    for _ in range(5):
        job.claim()
        job.fail(final=True)
    finish(job, 595)
    job.look()
    again = job.look()
    job.check(again)
    assert again.rows_read == 5


def test_tasks_put_back_by_a_retry_count_once_when_they_are_done() -> None:
    job = Job(shards=1)
    job.plan(20)
    for _ in range(4):
        job.claim()
        job.fail(final=True)
    finish(job, 16)
    job.look()
    job.reopen()
    assert job.look().tasks["ready"] >= 4
    finish(job, 100)
    job.check(job.look())


def test_stored_totals_of_an_earlier_job_of_the_same_name_are_ignored() -> None:
    job = Job()
    job.plan(40)
    finish(job, 40)
    job.look()
    kept = job.services.objects
    assert isinstance(kept, MemoryObjects)
    other = Job(services=replace(new_services(), objects=kept))
    other.clock.advance(5)
    other.plan(40)
    seen = other.look()
    assert seen.tasks == {"ready": 40}


@pytest.mark.parametrize("kept", [b'{"v": 0}', b'{"v": 99, "done": {}}'])
def test_stored_totals_of_another_release_are_computed_again(kept: bytes) -> None:
    job = Job()
    job.plan(40)
    finish(job, 12)
    job.services.objects.put(job.services.paths(JOB).progress, kept)
    job.check(job.look())


def test_the_cursor_does_not_pass_rows_of_a_round_in_planning() -> None:
    job = Job(shards=1)
    job.plan(4)
    finish(job, 4)
    job.jobs.create_round(1, "retry")
    for sequence in (1, 2):
        job.table.create(1, sequence, Slice(0, 0, 1, 4, "0" * 64))
    finish(job, 2)
    job.check(job.look())
    job.table.create(1, 0, Slice(0, 0, 1, 4, "0" * 64))
    job.jobs.open_round(1, 3, 12, {})
    seen = job.look()
    job.check(seen)
    assert seen.tasks == {"done": 6, "ready": 1}


def test_progress_agrees_with_its_snapshot() -> None:
    job = Job()
    job.plan(10)
    for failed in (2, 0, 1):
        job.claim()
        job.complete(failed)
    job.claim()
    progress = progress_of(job.look())
    assert (progress.items, progress.ok, progress.failed) == (40, 9, {"network": 3})
    assert progress.tasks == {"done": 3, "leased": 1, "ready": 6}
    assert not progress.complete


def test_history_is_bounded_however_long_a_job_runs() -> None:
    job = Job(shards=1)
    job.plan(1)
    history = JobTotals()
    row = next(job.all_rows())
    for number in range(5000):
        history.add_row(replace(row, finished_ms=number * 60_000, took_ms=number + 1, items_ok=4))
    assert len(history.timeline) <= MOST_BUCKETS
    assert sum(each.ok for each in history.timeline.values()) == 20_000
    assert len(history.slowest) == 20
    assert history.slowest[0].took_ms == 5000
    assert history.quantile_ms(0.5) == pytest.approx(2500, rel=0.1)
    again = JobTotals.from_dict(history.to_dict())
    assert again == history

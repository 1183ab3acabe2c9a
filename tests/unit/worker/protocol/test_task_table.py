"""Leases: one holder at a time, fenced, and every lost reply has a meaning."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from slurm_worker.backends.request_counter import RequestKind
from slurm_worker.errors import ErrorClass
from slurm_worker.node.task_finder import Finished, Found, TaskFinder, Waiting
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.job_store import Marker
from slurm_worker.protocol.keys import TaskId, TaskState, parse_task_id, task_pk
from slurm_worker.protocol.ports import Applied, Refused, Statement
from slurm_worker.protocol.slices import Slice
from slurm_worker.protocol.task_history import Crash, TaskEvent
from slurm_worker.protocol.task_table import HISTORY_LIMIT, TaskTable
from slurm_worker.protocol.tasks import Claimed, GivenUp, Lease
from slurm_worker.testing import ManualClock, MemoryRows
from tests.unit.world import JOB, World, numbered

LEASE = LeaseConfig(ttl_s=100, heartbeat_s=25, margin_s=10)


class LosesReplies(MemoryRows):
    """Applies each update, loses the reply, and repeats it, as the SDK does."""

    def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
        super().update(pk, sk, statement)
        return super().update(pk, sk, statement)


@pytest.fixture
def table() -> TaskTable:
    table = TaskTable(MemoryRows(), JOB, 8, LEASE, ManualClock())
    table.create(0, 0, Slice(0, 0, 10, 5, "x"))
    return table


def only_row(table: TaskTable):  # type: ignore[no-untyped-def]
    return table.page(0, "", 10)[0]


def claim(table: TaskTable, owner: str = "w1") -> Lease:
    result = table.claim(only_row(table), owner)
    assert isinstance(result, Claimed)
    return result.lease


def test_a_claimed_task_is_held_against_others(table: TaskTable) -> None:
    row = only_row(table)
    assert isinstance(table.claim(row, "w1"), Claimed)
    assert table.claim(row, "w2") is None
    assert only_row(table).owner == "w1"


def test_a_claim_whose_reply_was_lost_is_still_ours() -> None:
    table = TaskTable(LosesReplies(), JOB, 8, LEASE, ManualClock())
    table.create(0, 0, Slice(0, 0, 10, 5, "x"))
    assert claim(table).attempt == 1


def test_creating_again_never_resets_a_claimed_row(table: TaskTable) -> None:
    claim(table)
    table.create(0, 0, Slice(0, 0, 10, 5, "x"))
    assert only_row(table).state is TaskState.LEASED


def test_a_live_lease_is_never_stolen(table: TaskTable) -> None:
    claim(table)
    assert table.steal(only_row(table), "w2") is None


def test_an_expired_lease_is_stolen_with_a_higher_attempt(table: TaskTable) -> None:
    lease = claim(table)
    table.clock.advance(111)  # type: ignore[attr-defined]
    result = table.steal(only_row(table), "w2")
    assert isinstance(result, Claimed)
    assert result.lease.attempt == lease.attempt + 1
    assert not table.heartbeat(lease, 1, 0)


def test_a_lease_renewed_since_it_was_seen_is_not_stolen(table: TaskTable) -> None:
    lease = claim(table)
    seen = only_row(table)
    assert table.heartbeat(lease, 1, 0)
    table.clock.advance(111)  # type: ignore[attr-defined]
    assert table.steal(seen, "w2") is None


def test_a_former_holder_can_neither_fail_nor_release_the_task(table: TaskTable) -> None:
    old = claim(table)
    table.clock.advance(111)  # type: ignore[attr-defined]
    table.steal(only_row(table), "w2")
    table.fail(old, ErrorClass.UNKNOWN, "late", 0)
    table.release(old)
    row = only_row(table)
    assert (row.state, row.owner, row.tries) == (TaskState.LEASED, "w2", 0)


def test_a_release_counts_no_try_and_a_failure_does(table: TaskTable) -> None:
    table.release(claim(table))
    assert only_row(table).tries == 0
    table.fail(claim(table), ErrorClass.NODE_FAILURE, "disk full", 30)
    row = only_row(table)
    assert (row.state, row.tries, row.error_class) == (TaskState.READY, 1, "node_failure")
    assert table.claim(row, "w2") is None, "its backoff has not passed"
    table.clock.advance(31)  # type: ignore[attr-defined]
    assert isinstance(table.claim(only_row(table), "w2"), Claimed)


def test_the_last_try_fails_the_task_for_good_until_it_is_reopened(table: TaskTable) -> None:
    for _ in range(LEASE.max_tries):
        table.fail(claim(table), ErrorClass.NODE_FAILURE, "disk full", 0)
    row = only_row(table)
    assert row.state is TaskState.FAILED
    assert table.reopen(row, 1)
    assert not table.reopen(row, 1), "only one of two retries reopens it"
    assert only_row(table).state is TaskState.READY


def keep_stealing(table: TaskTable, task: TaskId) -> Claimed | GivenUp | None:
    shard = parse_task_id(task)[1] % table.shards
    (row,) = (each for each in table.page(shard, "", 10) if each.task == task)
    table.claim(row, "w")
    for _ in range(LEASE.max_lost):
        table.clock.advance(111)  # type: ignore[attr-defined]
        (row,) = (each for each in table.page(shard, "", 10) if each.task == task)
        result = table.steal(row, "w")
    return result


def test_a_task_that_keeps_losing_its_lease_is_to_be_bisected(table: TaskTable) -> None:
    result = keep_stealing(table, TaskId("000-00000000"))
    assert isinstance(result, Claimed)
    assert result.lease.to_bisect(LEASE.max_lost)


def test_a_half_that_keeps_losing_its_lease_is_quarantined(table: TaskTable) -> None:
    table.create_halves(only_row(table))
    halves = [TaskId("000-20000000"), TaskId("000-40000000")]
    rows = {row.task: row for row in table.page(0, "", 10)}
    assert [(rows[half].where.first, rows[half].where.count) for half in halves] == [(0, 2), (2, 3)]
    assert isinstance(keep_stealing(table, halves[1]), GivenUp)
    row = table.page(0, "", 10)[-1]
    assert (row.state, row.error_class) == (TaskState.QUARANTINED, "worker_crash")


def test_a_task_of_one_item_that_keeps_losing_its_lease_is_quarantined(table: TaskTable) -> None:
    table.create(0, 8, Slice(0, 0, 10, 1, "x"))
    assert isinstance(keep_stealing(table, TaskId("000-00000008")), GivenUp)


def test_a_worker_that_gives_a_task_up_knows_it_if_the_reply_was_lost() -> None:
    table = TaskTable(LosesReplies(), JOB, 8, LEASE, ManualClock())
    table.create(0, 0, Slice(0, 0, 10, 1, "x"))
    assert isinstance(keep_stealing(table, TaskId("000-00000000")), GivenUp)
    row = only_row(table)
    assert table.steal(row, "late") is None, "it was given up by another"


def test_a_done_row_with_every_attribute_stays_under_a_kilobyte(
    table: TaskTable,
) -> None:
    table.fail(claim(table), ErrorClass.UNKNOWN, "x", 0, final=True)
    assert table.reopen(only_row(table), 10)
    for _ in range(HISTORY_LIMIT):
        lease = claim(table, "1234567_1000-r0-0123456789ab")
        table.clock.advance(111)  # type: ignore[attr-defined]
        table.steal(only_row(table), "1234567_1001-r0-0123456789ab")
        table.excuse_loss(lease)
        table.release(Lease(only_row(table), "1234567_1001-r0-0123456789ab"))
    table.complete(
        Marker(
            "j" * 63,
            TaskId("000-00000000"),
            9,
            "1234567_1000-r0-0123456789ab",
            100_000,
            90_000,
            99_999,
            failed=dict.fromkeys(("network", "timeout", "bad_input", "rate_limited"), 1000),
            slurm={"node": "node-0123.cluster"},
            requests={each.value: 12_345 for each in RequestKind},
        )
    )
    (row,) = table.rows.query(task_pk(JOB, 0))
    # As DynamoDB counts: names and texts by length, small numbers 3 bytes, a map or list 3 + 1.
    assert size_of(row) < 1024


def size_of(value: object) -> int:
    if isinstance(value, dict):
        return 3 + sum(len(name) + 1 + size_of(each) for name, each in value.items())
    if isinstance(value, list):
        return 3 + sum(1 + size_of(each) for each in value)
    return len(value) if isinstance(value, str) else len(str(value)) // 2 + 2


def test_a_crash_is_recorded_once(table: TaskTable) -> None:
    lease = claim(table)
    crash = Crash(ErrorClass.OUT_OF_MEMORY, 3)
    assert table.record_crash(lease.task, lease.attempt, "w1", crash)
    assert not table.record_crash(lease.task, lease.attempt, "w1", crash)
    row = only_row(table)
    assert (row.state, row.crashes) == (TaskState.READY, (crash,))


def test_the_lease_of_a_holder_that_is_known_to_be_dead_is_stolen_at_once(
    table: TaskTable,
) -> None:
    lease = claim(table)
    assert not table.abandon(lease.task, lease.attempt, "w2"), "another's lease is not his to end"
    assert table.abandon(lease.task, lease.attempt, "w1")
    found = TaskFinder(table, "w2", table.clock, random.Random(1)).next()
    assert isinstance(found, Found)
    assert (found.lease.attempt, found.lease.row.lost) == (2, 1), "a task that kills is seen to"
    assert not table.abandon(lease.task, lease.attempt, "w1")
    assert not table.heartbeat(lease, 0, 0)


def stolen_from(table: TaskTable) -> Lease:
    """A lease that has run out, and that another has taken over."""
    lease = claim(table)
    table.clock.advance(111)  # type: ignore[attr-defined]
    assert isinstance(table.steal(only_row(table), "w2"), Claimed)
    assert only_row(table).lost == 1
    return lease


def test_a_lease_that_a_live_worker_lost_does_not_count_against_its_task(
    table: TaskTable,
) -> None:
    lease = stolen_from(table)
    table.give_back(lease)
    row = only_row(table)
    assert (row.owner, row.lost) == ("w2", 0)


def test_a_loss_is_excused_once_however_often_it_is_reported(table: TaskTable) -> None:
    first = stolen_from(table)
    table.excuse_loss(first)
    table.clock.advance(111)  # type: ignore[attr-defined]
    assert isinstance(table.steal(only_row(table), "w3"), Claimed), "w2 has died"
    table.excuse_loss(first)
    assert only_row(table).lost == 1


def test_a_worker_that_holds_its_lease_has_lost_none_to_excuse(table: TaskTable) -> None:
    stolen_from(table)
    table.excuse_loss(Lease(only_row(table), "w2"))
    assert only_row(table).lost == 1


def test_a_task_given_back_because_a_service_failed_is_ready_at_once_and_counts_no_try(
    table: TaskTable,
) -> None:
    for _ in range(HISTORY_LIMIT):
        table.give_back(claim(table))
    row = only_row(table)
    assert (row.state, row.lost, row.tries) == (TaskState.READY, 0, 0)
    assert len(row.history) == 1, "there is room for what happens besides"


def test_an_unanswered_claim_is_given_back_and_no_other_lease_is(table: TaskTable) -> None:
    seen = only_row(table)
    assert isinstance(table.claim(seen, "w1", "its request"), Claimed)
    table.undo_claim(seen, "w2", "another request")
    assert only_row(table).owner == "w1"
    table.undo_claim(seen, "w1", "its request")
    assert (only_row(table).state, only_row(table).lost) == (TaskState.READY, 0)


def test_undoing_a_claim_that_leased_nothing_keeps_the_workers_next_lease(
    table: TaskTable,
) -> None:
    seen = only_row(table)
    assert isinstance(table.claim(seen, "w1", "the next request"), Claimed)
    table.undo_claim(seen, "w1", "a request that never arrived")
    assert (only_row(table).state, only_row(table).owner) == (TaskState.LEASED, "w1")


def test_every_worker_gets_the_same_decision_between_markers(table: TaskTable) -> None:
    ours = Marker(JOB, TaskId("000-00000000"), 2, "w", 5, 5, 5)
    assert [table.decide(replace(ours, attempt=each)) for each in (2, 3, 2)] == [2, 2, 2]


def test_the_history_says_why_each_further_attempt_began(table: TaskTable) -> None:
    table.release(claim(table, "w1"))
    claim(table, "w2")
    table.clock.advance(111)  # type: ignore[attr-defined]
    stolen = table.steal(only_row(table), "w3")
    assert isinstance(stolen, Claimed)
    table.fail(stolen.lease, ErrorClass.NETWORK, "no route", 0)
    history = only_row(table).history
    assert [(entry.event, entry.worker, entry.previous) for entry in history] == [
        (TaskEvent.RELEASED, "w1", ""),
        (TaskEvent.STOLEN, "w3", "w2"),
        (TaskEvent.FAILED, "w3", ""),
    ]
    assert (history[2].attempt, history[2].error_class) == (3, "network")


def test_the_history_stays_short_however_often_a_task_is_given_back(table: TaskTable) -> None:
    owner = "1234567_1023-r12-0123456789abcdef"
    for _ in range(HISTORY_LIMIT + 3):
        table.release(claim(table, owner))
    row = only_row(table)
    assert row.attempt == HISTORY_LIMIT + 3
    assert len(row.history) == HISTORY_LIMIT


def test_a_full_history_takes_less_than_half_of_the_kilobyte(table: TaskTable) -> None:
    for number in range(HISTORY_LIMIT + 3):
        claim(table, f"1234567_102{number}-r12-0123456789abcdef" * 2)
        table.clock.advance(111)  # type: ignore[attr-defined]
        stolen = table.steal(only_row(table), "7654321_1023-r12-fedcba9876543210" * 2)
        assert isinstance(stolen, Claimed)
        table.excuse_loss(Lease(replace(stolen.lease.row, attempt=2 * number + 1), ""))
        assert table.release(stolen.lease)
    (row,) = table.rows.query(task_pk(JOB, 0))
    assert size_of(row["history"]) < 512


def test_two_finders_never_hold_the_same_task(tmp_path: Path) -> None:
    world = World(tmp_path, bundle=1)
    world.plan(numbered(200))
    finders = [TaskFinder(world.table, f"w{n}", world.clock, random.Random(n)) for n in range(5)]
    tasks = []
    for turn in range(200):
        result = finders[turn % 5].next()
        assert isinstance(result, Found)
        tasks.append(result.lease.task)
    assert len(set(tasks)) == 200
    assert isinstance(finders[0].next(), Waiting)


def test_a_finder_steals_only_what_it_saw_unchanged_for_a_heartbeat(tmp_path: Path) -> None:
    world = World(tmp_path, bundle=5, lease=LEASE)
    world.plan(numbered(5))
    first = TaskFinder(world.table, "w1", world.clock, random.Random(1))
    assert isinstance(first.next(), Found)
    world.clock.advance(LEASE.ttl_s + LEASE.margin_s + 1)
    second = TaskFinder(world.table, "w2", world.clock, random.Random(2))
    assert isinstance(second.next(), Waiting)
    assert isinstance(second.next(), Waiting)
    world.clock.advance(LEASE.heartbeat_s)
    assert isinstance(second.next(), Found)


def test_a_new_round_makes_a_finder_look_at_old_tasks_again(tmp_path: Path) -> None:
    world = World(tmp_path, bundle=5, lease=LeaseConfig(max_tries=1))
    world.plan(numbered(5))
    finder = TaskFinder(world.table, "w1", world.clock, random.Random(1))
    found = finder.next()
    assert isinstance(found, Found)
    world.table.fail(found.lease, ErrorClass.UNKNOWN, "x", 0)
    assert isinstance(finder.next(), Finished)
    world.table.reopen(world.task_rows()[0], 1)
    finder.new_generation(2)
    assert isinstance(finder.next(), Found)


class Leases(RuleBasedStateMachine):
    """Random claims, steals, beats and ends by three workers on skewed timing."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.table = TaskTable(MemoryRows(), JOB, 8, LEASE, self.clock)
        self.table.create(0, 0, Slice(0, 0, 10, 5, "x"))
        self.leases: dict[str, Lease] = {}
        self.attempts: list[int] = []

    workers = st.sampled_from(["w1", "w2", "w3"])

    @rule(worker=workers, steal=st.booleans())
    def take(self, worker: str, steal: bool) -> None:
        row = only_row(self.table)
        result = self.table.steal(row, worker) if steal else self.table.claim(row, worker)
        if isinstance(result, Claimed):
            self.leases[worker] = result.lease
            self.attempts.append(result.lease.attempt)

    @rule(worker=workers)
    def beat(self, worker: str) -> None:
        if worker in self.leases:
            renewed = self.table.heartbeat(self.leases[worker], 1, 0)
            newest = self.leases[worker].attempt == max(self.attempts)
            if renewed:
                assert newest, "a fenced worker's heartbeat was accepted"

    @rule(worker=workers, final=st.booleans())
    def give_back(self, worker: str, final: bool) -> None:
        if worker in self.leases:
            lease = self.leases.pop(worker)
            if final:
                self.table.fail(lease, ErrorClass.UNKNOWN, "x", 0)
            else:
                self.table.release(lease)

    @rule(seconds=st.integers(1, 200))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @invariant()
    def attempts_strictly_rise(self) -> None:
        assert self.attempts == sorted(set(self.attempts))

    @invariant()
    def a_leased_row_names_its_newest_holder(self) -> None:
        row = only_row(self.table)
        if row.state is TaskState.LEASED:
            assert row.attempt == max(self.attempts)


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)

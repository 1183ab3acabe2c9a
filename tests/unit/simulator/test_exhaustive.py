"""Every schedule of a small world keeps the promises; what is broken is found by the shortest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

import pytest

from slurm_worker.errors import ServiceError
from slurm_worker.protocol.job_store import Marker
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.ports import Statement
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import TaskRow
from tests.simulator.exhaustive.history import NO_ANSWER, Histories, Program
from tests.simulator.exhaustive.machine import Machine, State
from tests.simulator.exhaustive.ports import Store
from tests.simulator.exhaustive.process import Process, Request
from tests.simulator.exhaustive.programs import Edges
from tests.simulator.exhaustive.search import Bounds, Search
from tests.simulator.exhaustive.shared import Contents, Shared
from tests.simulator.exhaustive.trial import Mutant, try_world
from tests.simulator.exhaustive.worlds import WORLDS, World

_ALWAYS = "attribute_exists(#pk)"


def world(name: str) -> World:
    return next(each for each in WORLDS if each.name == name)


def test_every_schedule_of_two_workers_with_one_task_keeps_the_promises() -> None:
    trial = try_world(world("one task"), bounds=Bounds(((1, 1),)))
    assert not trial.found.broken, "\n".join(trial.story)
    # Fewer would mean that something is no longer tried.
    assert trial.found.schedules > 500
    assert trial.found.states > 5_000


def test_a_search_that_ends_early_says_what_it_has_tried_completely() -> None:
    found = try_world(world("one task"), bounds=Bounds(turns=5_000)).found
    whole = try_world(world("one task"), bounds=Bounds(((1, 0), (0, 1)))).found
    assert found.complete == whole.complete == ((1, 0), (0, 1))
    assert found.schedules == whole.schedules
    assert 5_000 <= found.turns < 5_100


def test_a_search_is_the_same_each_time() -> None:
    first, second = (
        try_world(world("pause beside a worker"), bounds=Bounds(((0, 1),))).found for _ in range(2)
    )
    assert replace(first, seconds=0.0) == replace(second, seconds=0.0)


def test_a_process_that_depends_on_more_than_its_answers_is_reported() -> None:
    calls: list[int] = []

    def main(process: Process) -> str:
        calls.append(1)
        process.ask(Request("table", "get", ("pk", f"sk{len(calls)}"), writes=False))
        process.ask(Request("table", "get", ("pk", "sk"), writes=False))
        return "done"

    histories = Histories(Contents())
    first = histories.after(histories.start(Program("odd", main)), None, 0.0)
    histories.after(first, 0, 0.0)
    with pytest.raises(AssertionError, match="after the same answers"):
        histories.after(first, NO_ANSWER, 0.0)
    histories.close()


def test_schedules_are_counted_where_states_follow_each_other_in_a_circle() -> None:
    def writer(name: str) -> Program:
        def main(process: Process) -> str:
            with suppress(ServiceError):
                process.ask(Request("store", "put", ("key", name.encode()), writes=True))
            return "done"

        return Program(name, main)

    def worker(_name: str, _options: dict[str, str]) -> Program:
        raise AssertionError("no array is submitted")

    machine = Machine(worker)
    state = State(Shared(), ())
    for name in ("one", "two"):
        state = machine.started(state, writer(name))
    # Each may write again and again. So after three faults, what the first wrote is there again.
    search = Search(machine, state, Bounds(((0, 3),)), lambda _state, _faults: None)
    found = search.run()
    machine.histories.close()
    assert found.complete == ((0, 3),)
    # Counted by hand: 2 schedules without a fault, 14 with one, 36 with two, 44 with three.
    assert found.schedules == 2 + 14 + 36 + 44


class Overwrites(Store):
    """A marker is written whether or not there is one."""

    def put_new(self, key: str, body: bytes) -> bool:
        self.put(key, body)
        return True


class HoldsBack(Store):
    """A marker is written when it is published."""

    def __init__(self, process: Process, *, conditional: bool = True) -> None:
        super().__init__(process, conditional=conditional)
        self._held: list[tuple[str, bytes]] = []

    def put_new(self, key: str, body: bytes) -> bool:
        if not key.endswith(".done"):
            return super().put_new(key, body)
        self._held.append((key, body))
        return True

    def publish(self) -> None:
        for key, body in self._held:
            super().put_new(key, body)


def row_first(store: Store) -> type[TaskTable]:
    """The row is completed before the marker exists."""

    class RowFirst(TaskTable):
        def complete(self, marker: Marker) -> None:
            super().complete(marker)
            assert isinstance(store, HoldsBack)
            store.publish()

    return RowFirst


def opens_first(
    jobs: JobTable, table: TaskTable, round_no: int, failed: Callable[[], Iterable[TaskRow]]
) -> int:
    """A retry that opens its round before it puts tasks back, the last one first."""
    jobs.open(round_no + 1)
    return sum(table.reopen(row, round_no) for row in list(failed())[::-1])


def unconditional(name: str) -> Callable[[Statement], Statement]:
    """The statements of this name have no condition."""
    return lambda each: replace(each, condition=_ALWAYS) if each.name == name else each


#: The smallest world that shows it, the mutant, and what is found with one preemption or one fault.
MUTANTS: dict[str, tuple[str, Mutant, tuple[int, int], str]] = {
    "a marker without its condition": (
        "one task",
        Mutant(edges=Edges(store=Overwrites)),
        (1, 0),
        "has had two contents",
    ),
    "the row before the marker": (
        "one task",
        Mutant(edges=Edges(store=HoldsBack, table=row_first)),
        (0, 1),
        "is done without a marker",
    ),
    "a claim without its condition": (
        "one task",
        Mutant(statement=unconditional("claim")),
        (1, 0),
        "claim takes a task from (leased|done)",
    ),
    "a reopening without its condition": (
        "retry twice",
        Mutant(statement=unconditional("reopen")),
        (1, 0),
        "reopen takes a task from|reopen puts a task back",
    ),
    "a round that is open before its tasks are back": (
        "retry beside a late worker",
        Mutant(open_round=opens_first),
        (1, 0),
        "tasks are left although nothing went wrong",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_protocol_is_found_with_the_fewest_preemptions_and_faults(name: str) -> None:
    where, mutant, fewest, expected = MUTANTS[name]
    trial = try_world(world(where), mutant, bounds=Bounds((fewest,)))
    assert re.search(expected, trial.found.broken)
    assert trial.found.spent == fewest
    assert trial.story[-1].startswith(f"then: {trial.found.broken}")

"""A small world before and after its schedules: how it begins, and what must hold at its end."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.spec.job_spec import Config, parse_config
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.job_rows import JobRow
from slurm_worker.protocol.job_store import JobStore, Marker
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import TaskId, TaskState
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import TaskRow
from slurm_worker.testing import ManualClock, MemoryObjects, MemoryRows
from tests.simulator.checks.rows import Violation, check_ended
from tests.simulator.exhaustive import programs
from tests.simulator.exhaustive.machine import LONG_S, Machine, State, What
from tests.simulator.exhaustive.programs import BUCKET, INPUT, JOB, PATHS, Verb, command
from tests.simulator.exhaustive.shared import Shared

#: A user repeats a command so often at most.
_MOST_TRIES = 6


@dataclass(frozen=True, slots=True)
class Job:
    """The job of a small world.

    Args:
        items: in its input; one with ``bad`` fails.
        bundle: items per task.
        workers: elements of its array; at most one for each task.
        max_lost: leases that a task may lose.
        conditional: whether the store heeds ``If-None-Match``.
    """

    items: tuple[dict[str, Any], ...]
    bundle: int = 1
    workers: int = 2
    max_lost: int = 3
    conditional: bool = True

    def config(self) -> Config:
        """The user's YAML."""
        raw: dict[str, Any] = {
            "job_id": JOB,
            "input": {"path": f"s3://{BUCKET}/{INPUT}", "key": "id"},
            "handler": {"entry": f"{programs.__name__}:handle"},
            "workers": self.workers,
            "bundle": self.bundle,
            "lease": {"ttl": 1.4, "heartbeat": 0.5, "margin": 0.1, "max_lost": self.max_lost},
            "worker": {"tries": 1, "checkpoint": None},
        }
        return parse_config(raw, raw)

    def input(self) -> bytes:
        """The input's bytes."""
        return "".join(json.dumps(item) + "\n" for item in self.items).encode()


def submit(job: Job) -> Verb:
    """``slurmctl submit``."""
    config = job.config()
    return lambda services: api.submit(services, config, log=quiet)


def quiet(_line: str) -> None:
    """Drop a line of a command."""


class Stage:
    """Runs commands one after the other, without faults.

    Args:
        machine: makes the steps.
        job: what its user has submitted.
    """

    def __init__(self, machine: Machine, job: Job) -> None:
        self._machine = machine
        self._job = job
        self._checked: set[tuple[Shared, bool]] = set()
        self._whole: dict[str, bytes] = {}

    def state(self) -> State:
        """Only the input."""
        shared = self._machine.contents.put(Shared(), INPUT, self._job.input(), 0.0)
        return State(shared, ())

    def command(self, state: State, name: str, verb: Verb) -> State:
        """Run a command to its end; the workers that it starts have not begun.

        Raises:
            Violation: if it breaks a promise.
        """
        program = command(name, verb, conditional=self._job.conditional)
        before = len(state.processes)
        state = self._machine.started(state, program)
        return self.alone(state, before)

    def settle(self, state: State) -> State:
        """Let every process run to its end, one after the other."""
        while any(each.place >= 0 for each in state.processes):
            enabled = self._machine.enabled(state)
            if enabled:
                state = self._turn(state, enabled[0])
            else:
                later = self._machine.later(state)
                assert later is not None
                state = later
        return state._replace(processes=())

    def alone(self, state: State, process: int) -> State:
        """Let one process run to its end."""
        while state.processes[process].place >= 0:
            state = self._turn(state, process)
        return state._replace(
            processes=(*state.processes[:process], *state.processes[process + 1 :])
        )

    def with_worker(self, state: State) -> State:
        """With one more worker than the job has use for."""
        return self._machine.with_worker(state, len(state.processes))

    def damage(self, state: State) -> State:
        """The segments of the input can't be read."""
        contents = self._machine.contents
        for key in contents.keys(state.shared, PATHS.segments_folder):
            body = contents.body(state.shared, key)
            assert body is not None
            self._whole[key] = body
            damaged = bytes(byte ^ 1 for byte in body)
            state = state._replace(shared=contents.put(state.shared, key, damaged, state.now))
        return state

    def restore(self, state: State) -> State:
        """The segments are as they were."""
        for key, body in self._whole.items():
            shared = self._machine.contents.put(state.shared, key, body, state.now)
            state = state._replace(shared=shared)
        return state

    def _turn(self, state: State, process: int) -> State:
        wakes = state.processes[process].wakes
        state = state._replace(now=max(state.now, wakes))
        state, broken = self._machine.step(state, process, What.STEP)
        if broken:
            raise Violation(broken)
        return state

    # --- the end ------------------------------------------------------------------

    def check(
        self, state: State, verbs: Iterable[tuple[str, Verb]], *, alone: bool, done: bool
    ) -> None:
        """What must hold when faults have stopped, and the user has repeated these commands.

        With `alone`, all must have ended before. With `done`, no task may have failed.

        Raises:
            Violation: naming the promise.
        """
        if (state.shared, alone) in self._checked:
            return
        self._checked.add((state.shared, alone))
        _check_arrays(state.shared)
        if alone and not _complete(self._machine.contents.tables(state.shared)[0], done=done):
            raise Violation("tasks are left although nothing went wrong")
        # Every lease has run out by now.
        state = State(state.shared, (), state.now + LONG_S)
        for number in range(_MOST_TRIES):
            for name, verb in verbs:
                state = self.settle(self.command(state, f"{name} again, {number}", verb))
            rows, objects = self._machine.contents.tables(state.shared)
            if _complete(rows, done=done):
                break
        else:
            raise Violation(f"tasks are left after {_MOST_TRIES} tries of the user")
        check_end(rows, objects, self._job)


def _complete(rows: MemoryRows, *, done: bool) -> bool:
    """Whether every task has ended; with `done`, well."""
    states = [row.state for row in _task_rows(rows)]
    return bool(states) and all(
        state is TaskState.DONE if done else state.terminal for state in states
    )


def _check_arrays(shared: Shared) -> None:
    """A submission has one array, also if several calls submit it."""
    labels = Counter(
        array.name.rpartition(".")[0] for array in shared.arrays if not array.cancelled
    )
    for label, count in labels.items():
        if count > 1:
            raise Violation(f"submission {label} has {count} arrays")


def check_end(rows: MemoryRows, objects: MemoryObjects, job: Job) -> None:
    """Each task has ended as its marker says, and each item is there once.

    Raises:
        Violation: naming the promise.
    """
    tasks = {row.task: row for row in _task_rows(rows)}
    markers = {marker.task: marker for marker in JobStore(objects, PATHS).markers()}
    check_ended(tasks, markers)
    _check_items(tasks, markers, objects, job)


def _check_items(
    tasks: dict[TaskId, TaskRow],
    markers: dict[TaskId, Marker],
    objects: MemoryObjects,
    job: Job,
) -> None:
    """Each item has one outcome in the first round."""
    found: Counter[str] = Counter()
    for task, marker in markers.items():
        for part in marker.parts:
            data = objects.get(part.key)
            if data is None:
                raise Violation(f"{task}: part {part.key} is not there")
            if hashlib.sha256(data).hexdigest() != part.sha256:
                raise Violation(f"{task}: part {part.key} is not what was committed")
            if tasks[task].round_no == 0:
                lines = gzip.decompress(data).splitlines()
                found.update(json.loads(line)["_key"] for line in lines)
    expected = Counter(str(item["id"]) for item in job.items)
    for row in tasks.values():
        if row.round_no == 0 and row.task not in markers:
            expected.subtract(JobStore(objects, PATHS).read_slice(0, row.where).keys)
    if found != +expected:
        raise Violation(f"items lost {expected - found}, items twice or more {found - expected}")


def job_row(rows: MemoryRows) -> JobRow | None:
    """The job's row."""
    return JobTable(rows, JOB, ManualClock()).find()


def _task_rows(rows: MemoryRows) -> list[TaskRow]:
    job = job_row(rows)
    if job is None:
        return []
    table = TaskTable(rows, JOB, job.shards, LeaseConfig(), ManualClock())
    return [row for shard in range(job.shards) for row in table.all_rows(shard)]

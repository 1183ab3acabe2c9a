"""The small worlds: what is there at first, and which processes run.

A world has one command of the user at a time, once or twice, beside at most two workers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.maintenance import gc
from airflow_slurm_provider.coordinator.maintenance.repair.job import repair
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.slurm.array_state import ArrayKey
from slurm_worker.errors import ErrorClass
from slurm_worker.protocol.job_rows import job_name
from slurm_worker.protocol.keys import task_pk, task_sk
from tests.simulator.checks.rows import Violation
from tests.simulator.exhaustive.machine import State
from tests.simulator.exhaustive.process import Request
from tests.simulator.exhaustive.programs import JOB, PATHS, Verb
from tests.simulator.exhaustive.stage import Job, Stage, quiet, submit

_CLASSES = [error_class.value for error_class in ErrorClass]


@dataclass(frozen=True, slots=True)
class World:
    """One world.

    Args:
        name: for the command line.
        job: what its user has submitted, or submits.
        prepare: what has happened before, without faults.
        commands: run at the same time as the workers that are left.
        again: what the user repeats when all of that has ended.
        listing: a command lists or deletes objects, so that none is a worker's own.
        steady: nobody changes the job's own rows.
        alone: without a fault, all ends well and nobody repeats a command.
        done: a retry repeats what has failed, so that each task ends well.
        shared_cursors: workers share each row by which a shard's cursor moves.
    """

    name: str
    job: Job
    prepare: Callable[[Stage, State], State]
    commands: tuple[tuple[str, Verb], ...]
    again: tuple[tuple[str, Verb], ...]
    listing: bool = False
    steady: bool = False
    alone: bool = True
    done: bool = False
    shared_cursors: bool = False

    def private(self, request: Request) -> bool:
        """Whether no other process of this world can see a request, or what it does."""
        verb, arguments = request.verb, request.arguments
        if request.service == "table":
            if verb == "put_new":
                return "#EVENT#" in str(arguments[0]["pk"])
            return self.steady and verb == "get" and "#TASK#" not in arguments[0]
        if request.service != "store" or self.listing or verb in ("list", "entries"):
            return False
        key = str(arguments[0])
        constant = (PATHS.config_folder, PATHS.segments_folder)
        return key.startswith(PATHS.parts) or (verb == "get" and key.startswith(constant))


# --- what has happened before ------------------------------------------------------------


def _nothing(_stage: Stage, state: State) -> State:
    return state


def _planned(job: Job) -> Callable[[Stage, State], State]:
    """Submitted; the workers have not begun."""
    return lambda stage, state: stage.command(state, "submit", submit(job))


def _two_workers(job: Job) -> Callable[[Stage, State], State]:
    """Submitted, and one more worker than there are tasks."""
    return lambda stage, state: stage.with_worker(_planned(job)(stage, state))


def _ended(job: Job) -> Callable[[Stage, State], State]:
    return lambda stage, state: stage.settle(_planned(job)(stage, state))


def _late(job: Job) -> Callable[[Stage, State], State]:
    """One worker has done all; the others have not begun."""

    def prepare(stage: Stage, state: State) -> State:
        state = stage.damage(_planned(job)(stage, state))
        return stage.restore(stage.alone(state, 0))

    return prepare


def _failed(job: Job) -> Callable[[Stage, State], State]:
    """Every task has failed as a whole, because its slice could not be read."""

    def prepare(stage: Stage, state: State) -> State:
        return stage.restore(stage.settle(stage.damage(_planned(job)(stage, state))))

    return prepare


def _paused(job: Job) -> Callable[[Stage, State], State]:
    """Paused before a worker began; all have left."""

    def prepare(stage: Stage, state: State) -> State:
        return stage.settle(stage.command(_planned(job)(stage, state), "pause", _pause))

    return prepare


def _rows_lost(job: Job) -> Callable[[Stage, State], State]:
    """The first task's row is lost."""

    def forget(services: Services) -> None:
        services.rows.delete(task_pk(JOB, 0), task_sk(0, 0))

    return lambda stage, state: stage.command(_planned(job)(stage, state), "loss", forget)


def _workers_dead(job: Job) -> Callable[[Stage, State], State]:
    """Every worker died before it had a task."""
    return lambda stage, state: _planned(job)(stage, state)._replace(processes=())


# --- commands ------------------------------------------------------------------------------


def _retry(services: Services) -> Any:
    return api.retry(services, JOB, _CLASSES, log=quiet)


def _resubmit(services: Services) -> Any:
    return api.resubmit(services, JOB, max_resubmits=9, log=quiet)


def _pause(services: Services) -> Any:
    return control.pause(services, JOB)


def _resume(services: Services) -> Any:
    return control.resume(services, JOB, log=quiet)


def _cancel(services: Services) -> None:
    """Cancel, and look whether a submission that was there before still has workers."""
    rows = services.jobs(JOB).submissions()
    control.cancel(services, JOB)
    found = services.slurm.find([job_name(JOB, row) for row in rows])
    if services.slurm.together([ArrayKey(found[name], name) for name in found]).alive:
        raise Violation(f"workers of {sorted(found)} are left after a cancel that succeeded")


def _add(services: Services) -> Any:
    return control.add_workers(services, JOB, 1, log=quiet)


def _repair(services: Services) -> Any:
    return repair(services, JOB, log=quiet)


def _aggregate(services: Services) -> Any:
    return api.aggregate(services, JOB, log=quiet)


def _collect(services: Services) -> Any:
    return gc.collect(services, JOB, older_than_s=0.0, log=quiet)


def _items(*bad: bool) -> tuple[dict[str, Any], ...]:
    return tuple({"id": f"k{n}", "n": n, "bad": each} for n, each in enumerate(bad))


_ONE = Job(_items(False))
_TWO = Job(_items(False, False))
_TABLE = Job(_items(False), conditional=False)
_PAIR = Job(_items(False, False), bundle=2, max_lost=1)
_SMALL = Job(_items(False), workers=1)
_MIXED = Job(_items(False, True), workers=1)


def _again(job: Job, *verbs: tuple[str, Verb]) -> tuple[tuple[str, Verb], ...]:
    return (*verbs, ("resume", _resume), ("submit", submit(job)))


WORLDS = (
    World(
        "one task",
        _ONE,
        _two_workers(_ONE),
        (),
        _again(_ONE),
        steady=True,
    ),
    World("two tasks", _TWO, _planned(_TWO), (), _again(_TWO), steady=True),
    World(
        "the table decides",
        _TABLE,
        _two_workers(_TABLE),
        (),
        _again(_TABLE),
        steady=True,
    ),
    World("bisection", _PAIR, _two_workers(_PAIR), (), _again(_PAIR)),
    World(
        "cancel beside a worker",
        _SMALL,
        _planned(_SMALL),
        (("cancel", _cancel),),
        _again(_SMALL),
        alone=False,
    ),
    World(
        "pause beside a worker",
        _SMALL,
        _planned(_SMALL),
        (("pause", _pause),),
        _again(_SMALL),
        alone=False,
    ),
    World(
        "add workers beside a worker",
        _SMALL,
        _planned(_SMALL),
        (("add", _add),),
        _again(_SMALL),
    ),
    World(
        "repair beside a worker",
        _SMALL,
        _rows_lost(_SMALL),
        (("repair", _repair),),
        _again(_SMALL, ("repair", _repair)),
        listing=True,
        alone=False,
    ),
    World(
        "retry",
        _MIXED,
        _failed(_MIXED),
        (("retry", _retry),),
        _again(_MIXED, ("retry", _retry)),
        done=True,
    ),
    World(
        "gc beside a worker",
        _ONE,
        _planned(_ONE),
        (("gc", _collect),),
        _again(_ONE),
        listing=True,
    ),
    World(
        "gc beside aggregate",
        _SMALL,
        _ended(_SMALL),
        (("aggregate", _aggregate), ("gc", _collect)),
        (("aggregate", _aggregate),),
        listing=True,
    ),
    World(
        "aggregate twice",
        _SMALL,
        _ended(_SMALL),
        (("aggregate", _aggregate), ("aggregate too", _aggregate)),
        (("aggregate", _aggregate),),
        listing=True,
    ),
    World(
        "cancel beside submit",
        _SMALL,
        _nothing,
        (("submit", submit(_SMALL)), ("cancel", _cancel)),
        _again(_SMALL),
        alone=False,
    ),
    World(
        "resume twice",
        _SMALL,
        _paused(_SMALL),
        (("resume", _resume), ("resume too", _resume)),
        _again(_SMALL),
    ),
    World(
        "resubmit beside submit",
        _SMALL,
        _workers_dead(_SMALL),
        (("resubmit", _resubmit), ("submit", submit(_SMALL))),
        _again(_SMALL),
    ),
    World(
        "submit twice",
        _SMALL,
        _nothing,
        (("submit", submit(_SMALL)), ("submit too", submit(_SMALL))),
        _again(_SMALL),
    ),
    World(
        "retry twice",
        _SMALL,
        _failed(_SMALL),
        (("retry", _retry), ("retry too", _retry)),
        _again(_SMALL, ("retry", _retry)),
        done=True,
    ),
    World(
        "retry beside a late worker",
        _TWO,
        _late(_TWO),
        (("retry", _retry),),
        _again(_TWO, ("retry", _retry)),
        shared_cursors=True,
        done=True,
    ),
)

"""Trying one world: every schedule within its bounds, and the one that breaks a promise."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from unittest import mock

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.planning import initial_round
from slurm_worker.node import task_finder
from slurm_worker.protocol.generations import open_round
from slurm_worker.protocol.ports import Statement
from tests.simulator.checks.rows import Violation
from tests.simulator.coordinator import OpenRound
from tests.simulator.exhaustive.machine import Machine, State
from tests.simulator.exhaustive.process import Request, decided
from tests.simulator.exhaustive.programs import PATHS, Edges, command, in_memory, worker
from tests.simulator.exhaustive.search import Bounds, Found, Search
from tests.simulator.exhaustive.stage import Stage
from tests.simulator.exhaustive.worlds import World

_LONGEST = 100
_USUAL = Bounds()


@dataclass(frozen=True, slots=True)
class Mutant:
    """A way to break the protocol, to check that a search finds it.

    Args:
        statement: replaces a statement on the table.
        edges: replaces how workers reach the services.
        open_round: replaces how a retry's round is opened.
    """

    statement: Callable[[Statement], Statement] = lambda statement: statement
    edges: Edges = field(default_factory=Edges)
    open_round: OpenRound = open_round


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a world."""

    found: Found
    histories: int  #: distinct histories of processes
    story: tuple[str, ...]  #: the schedule that breaks a promise, as a time line


def try_world(world: World, mutant: Mutant | None = None, bounds: Bounds = _USUAL) -> Trial:
    """Try every schedule of a world, within bounds; the world says which requests are private."""
    broken = mutant or Mutant()
    with _product(world, broken):
        machine = Machine(partial(worker, edges=broken.edges, conditional=world.job.conditional))
        machine.contents.mutate = broken.statement
        stage = Stage(machine, world.job)
        try:
            state = world.prepare(stage, stage.state())
            for name, verb in world.commands:
                program = command(name, verb, conditional=world.job.conditional)
                state = machine.started(state, program)

            def at_end(end: State, faults: int) -> None:
                alone = world.alone and not faults
                stage.check(end, world.again, alone=alone, done=world.done)

            search = Search(
                machine,
                state,
                replace(bounds, private=world.private),
                at_end,
                lambda before, after: _check_manifest(machine, before, after),
            )
            found = search.run()
            story = tuple(_told(machine, state, found)) if found.broken else ()
            return Trial(found, len(machine.histories.places), story)
        finally:
            machine.histories.close()


@contextmanager
def _product(world: World, mutant: Mutant) -> Iterator[None]:
    """The product, made small: one shard, journals in memory; and what is broken of it."""
    logging.disable(logging.WARNING)
    with ExitStack() as stack:
        stack.callback(logging.disable, logging.NOTSET)
        stack.enter_context(decided())
        stack.enter_context(in_memory())
        stack.enter_context(mock.patch.object(initial_round, "shard_count", return_value=1))
        stack.enter_context(mock.patch.object(api, "open_round", mutant.open_round))
        if world.shared_cursors:
            stack.enter_context(mock.patch.object(task_finder, "ROWS_PER_CURSOR", 1))
        yield


def _check_manifest(machine: Machine, before: State, after: State) -> None:
    """Every file of the published dataset exists."""
    if before.shared.objects == after.shared.objects:
        return
    contents = machine.contents
    manifest = contents.body(after.shared, PATHS.manifest)
    for file in json.loads(manifest)["files"] if manifest else ():
        if contents.body(after.shared, file["key"]) is None:
            raise Violation(f"the manifest names {file['key']}, which does not exist")


def _told(machine: Machine, state: State, found: Found) -> Iterator[str]:
    """The schedule as a time line: time, process, what happens, request and answer."""
    for process, what in found.path:
        while not machine.enabled(state):
            later = machine.later(state)
            assert later is not None
            state = later
        place = machine.place(state, process)
        asked = _text(place.next) if isinstance(place.next, Request) else "begins, or wakes up"
        yield f"{state.now:5.0f} s  {place.program.name:<14} {what.value:<34} {asked}"
        with suppress(Violation):
            state, _ = machine.step(state, process, what)
    preemptions, faults = found.spent
    yield f"then: {found.broken} ({preemptions} preemptions, {faults} faults)"


def _text(request: Request) -> str:
    words = []
    for argument in request.arguments:
        if isinstance(argument, Statement):
            words.append(argument.name)
        elif isinstance(argument, dict):
            words += [str(argument["pk"]), str(argument["sk"])]
        elif isinstance(argument, bytes):
            words.append(f"{len(argument)} bytes")
        elif argument not in (None, "", False):
            words.append(str(argument).partition("\n")[0])
    return f"{request.service} {request.verb} {' '.join(words)}"[:_LONGEST]

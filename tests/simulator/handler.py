"""The simulated user's handler: what it does with an item depends on the item and the seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any

from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.decorators import batch
from slurm_worker.errors import ErrorClass, FatalError, ItemError, RateLimited
from slurm_worker.execution.context import Context
from tests.simulator.engine.schedule import Killed
from tests.simulator.world import World

#: Items of a call of the batch handler.
BATCH = 3


class Behaviour(Enum):
    """What the handler does with an item; counts are of its calls for this item."""

    OK = "ok"
    BAD = "bad"  #: fails each time, with the item's class
    FLAKY = "flaky"  #: fails with a class that passes, the first calls
    CRASHES = "crashes"  #: takes its process down, the first calls
    POISON = "poison"  #: takes its process down, each time
    CHANGES = "changes"  #: changes the item that it was given, then fails the first calls
    MEMORY = "memory"  #: needs more memory than the element has: Slurm ends the element
    LIMITED = "limited"  #: the server answers 429 the first calls
    FATAL = "fatal"  #: the first call says that nothing of the job can succeed
    BUG = "bug"  #: has a bug
    NO_JSON = "no JSON"  #: returns what JSON would lose a value of
    HANGS = "hangs"  #: waits forever, until a signal interrupts it
    FREEZES = "freezes"  #: as HANGS, in native code: no signal, and no other thread of its process
    LATE = "late"  #: returns after minutes


_FLAKY_CALLS = 3
_CRASHES = 2
_FOREVER_S = 1e9
_USUAL = (Behaviour.OK,) * 8 + (Behaviour.BAD, Behaviour.FLAKY, Behaviour.BUG, Behaviour.CHANGES)
_RARE = (
    Behaviour.CRASHES,
    Behaviour.POISON,
    Behaviour.LIMITED,
    Behaviour.FATAL,
    Behaviour.FATAL,
    Behaviour.MEMORY,
    Behaviour.NO_JSON,
    Behaviour.LATE,
)
#: Only if the job's times bound a call.
_ENDLESS = (Behaviour.HANGS, Behaviour.FREEZES)
#: Longer than the longest that is respected, for one call in eight.
_RETRY_AFTER_S = (None, 0.5, 2.0, 2.0, 5.0, 30.0, 30.0, 700.0)


class SimHandler:
    """The handler of one run.

    Args:
        world: where the calls are counted.
        rng: decides what it does.
        items: number of items.
        item_s: mean seconds of a call.
        calm: every item is processed without an accident.
        bounded: the job's times bound a call, so that some never return.
    """

    def __init__(
        self,
        world: World,
        rng: random.Random,
        items: int,
        item_s: float,
        *,
        calm: bool,
        bounded: bool = False,
    ) -> None:
        self._world = world
        self._item_s = item_s
        usual = _USUAL[:9] if calm else _USUAL
        self.behaviours = [rng.choice(usual) for _ in range(items)]
        self.classes = [rng.choice(list(ErrorClass)) for _ in range(items)]
        if not calm:
            rare = _RARE + _ENDLESS if bounded else _RARE
            for behaviour in rng.sample(rare, rng.randint(0, len(rare) - 2)):
                self.behaviours[rng.randrange(items)] = behaviour
        for number, behaviour in enumerate(self.behaviours):
            if behaviour is not Behaviour.OK and not world.seen.happens(
                f"item k{number}", behaviour.value
            ):
                self.behaviours[number] = Behaviour.OK
        self.sends: list[float] = []
        #: How calls for each item have ended: the classes of their errors; empty for a result.
        self.ends: dict[str, set[str]] = {f"k{number}": set() for number in range(items)}
        #: The user has corrected the handler, and asks for more memory.
        self.corrected = False

    def __call__(self, item: dict[str, Any]) -> dict[Any, Any]:
        """Process one item."""
        world, key, number = self._world, item["id"], item["n"]
        if item != {"id": f"k{number}", "n": number}:
            raise AssertionError(f"the handler got {item}, which is not the planned item")
        world.calls[key] += 1
        self.sends.append(world.schedule.now)
        rng = self.rng_of(key, world.calls[key])
        world.schedule.sleep(rng.expovariate(1 / self._item_s))
        behaviour = self.behaviours[number]
        if behaviour is not Behaviour.OK:
            world.seen.faults[f"handler {behaviour.value}"] += 1
        return _ACTIONS[behaviour](self, item, world.calls[key])

    def fail(self, key: str, error_class: ErrorClass, error: Exception) -> None:
        """Raise what the project gives this class."""
        self.ends[key].add(error_class.value)
        raise error

    def succeed(self, key: str) -> dict[Any, Any]:
        """The item's right result."""
        number = int(key[1:])
        self.ends[key].add("")
        return {"n": number, "square": number * number}

    def die(self) -> None:
        """The process ends here."""
        self._world.schedule.kill(self._world.schedule.current.host)
        raise Killed

    @property
    def ends_elements(self) -> bool:
        """Whether an item still takes down what processes it."""
        return Behaviour.MEMORY in self.behaviours and not self.corrected

    def end_element(self) -> None:
        """Slurm ends the element that this process belongs to."""
        world = self._world
        element = world.elements[world.schedule.current.host]
        world.controller.kill(element, ElementState.OUT_OF_MEMORY)
        raise Killed

    def wait(self, seconds: float, *, frozen: bool = False) -> None:
        """Do not return for this time; `frozen`, no thread of the process runs meanwhile."""
        schedule = self._world.schedule
        if frozen:
            schedule.current.alarm = None
            schedule.pause(schedule.current.host, seconds)
        schedule.sleep(seconds)

    def rng_of(self, key: str, calls: int) -> random.Random:
        """Decides what a call leaves open."""
        return self._world.seen.rng_of(f"call {calls} of {key}")


def _ok(handler: SimHandler, item: dict[str, Any], _calls: int) -> dict[Any, Any]:
    return handler.succeed(item["id"])


def _bad(handler: SimHandler, item: dict[str, Any], _calls: int) -> dict[Any, Any]:
    error_class = handler.classes[item["n"]]
    handler.fail(item["id"], error_class, ItemError(error_class, "bad"))
    return {}


def _bug(handler: SimHandler, item: dict[str, Any], _calls: int) -> dict[Any, Any]:
    handler.fail(item["id"], ErrorClass.HANDLER_BUG, KeyError(f"of {item['id']}"))
    return {}


def _flaky(handler: SimHandler, item: dict[str, Any], calls: int) -> dict[Any, Any]:
    if calls <= _FLAKY_CALLS:
        handler.fail(item["id"], ErrorClass.NETWORK, ConnectionError("flaky"))
    return handler.succeed(item["id"])


def _change(handler: SimHandler, item: dict[str, Any], calls: int) -> dict[Any, Any]:
    key = item["id"]
    item.clear()
    item["changed"] = calls
    if calls <= _FLAKY_CALLS:
        handler.fail(key, ErrorClass.TIMEOUT, TimeoutError("after a change"))
    return handler.succeed(key)


def _crash(handler: SimHandler, item: dict[str, Any], calls: int) -> dict[Any, Any]:
    if calls <= _CRASHES:
        handler.die()
    return handler.succeed(item["id"])


def _poison(handler: SimHandler, item: dict[str, Any], _calls: int) -> dict[Any, Any]:
    if not handler.corrected:
        handler.die()
    return handler.succeed(item["id"])


def _memory(handler: SimHandler, item: dict[str, Any], _calls: int) -> dict[Any, Any]:
    if not handler.corrected:
        handler.end_element()
    return handler.succeed(item["id"])


def _limited(handler: SimHandler, item: dict[str, Any], calls: int) -> dict[Any, Any]:
    if calls <= _FLAKY_CALLS:
        error = RateLimited(handler.rng_of(item["id"], calls).choice(_RETRY_AFTER_S))
        handler.fail(item["id"], ErrorClass.RATE_LIMITED, error)
    return handler.succeed(item["id"])


def _fatal(handler: SimHandler, item: dict[str, Any], calls: int) -> dict[Any, Any]:
    if calls == 1:
        raise FatalError(f"the key is wrong for {item['id']}")
    return handler.succeed(item["id"])


def _no_json(handler: SimHandler, item: dict[str, Any], _calls: int) -> dict[Any, Any]:
    handler.ends[item["id"]].add(ErrorClass.HANDLER_BUG.value)
    return {"n": {1: "one", "1": "another"}}


def _hang(handler: SimHandler, item: dict[str, Any], _calls: int) -> dict[Any, Any]:
    if not handler.corrected:
        # Ends by the timeout of an item, or with the process.
        handler.ends[item["id"]].add(ErrorClass.TIMEOUT.value)
        handler.wait(_FOREVER_S)
    return handler.succeed(item["id"])


def _freeze(handler: SimHandler, item: dict[str, Any], _calls: int) -> dict[Any, Any]:
    if not handler.corrected:
        handler.ends[item["id"]].add(ErrorClass.TIMEOUT.value)
        handler.wait(_FOREVER_S, frozen=True)
    return handler.succeed(item["id"])


def _late(handler: SimHandler, item: dict[str, Any], calls: int) -> dict[Any, Any]:
    if not handler.corrected:
        # It may be too late for a timeout of the job.
        handler.ends[item["id"]].add(ErrorClass.TIMEOUT.value)
        handler.wait(handler.rng_of(item["id"], calls).uniform(20, 300))
    return handler.succeed(item["id"])


_ACTIONS: Mapping[Behaviour, Callable[[SimHandler, dict[str, Any], int], dict[Any, Any]]] = {
    Behaviour.OK: _ok,
    Behaviour.BAD: _bad,
    Behaviour.BUG: _bug,
    Behaviour.FLAKY: _flaky,
    Behaviour.CHANGES: _change,
    Behaviour.CRASHES: _crash,
    Behaviour.POISON: _poison,
    Behaviour.MEMORY: _memory,
    Behaviour.LIMITED: _limited,
    Behaviour.FATAL: _fatal,
    Behaviour.NO_JSON: _no_json,
    Behaviour.HANGS: _hang,
    Behaviour.FREEZES: _freeze,
    Behaviour.LATE: _late,
}

#: The handlers of the runs of this process: parameters of handlers are JSON.
_RUNS: dict[int, SimHandler] = {}


@contextmanager
def registered(run: int, handler: SimHandler) -> Iterator[None]:
    """Let `handle` find the handler of this run."""
    _RUNS[run] = handler
    try:
        yield
    finally:
        del _RUNS[run]


def handle(item: dict[str, Any], context: Context) -> object:
    """The function that the job names."""
    return _RUNS[context.params["run"]](item)


@batch(BATCH)
def handle_batch(items: list[dict[str, Any]], context: Context) -> list[object]:
    """The same, for jobs whose handler takes several items."""
    return [_RUNS[context.params["run"]](item) for item in items]

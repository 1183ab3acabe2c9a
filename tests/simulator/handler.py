"""The simulated user's handler: what it does with an item depends on the item and the seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any

from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.errors import ErrorClass, FatalError, ItemError, RateLimited
from slurm_worker.execution.context import Context
from tests.simulator.schedule import Killed
from tests.simulator.world import World


class Behaviour(Enum):
    """What the handler does with an item; counts are of its calls for this item."""

    OK = "ok"
    BAD = "bad"  #: fails with a class that its user does not retry
    FLAKY = "flaky"  #: fails with a class that passes, the first calls
    CRASHES = "crashes"  #: takes its process down, the first calls
    POISON = "poison"  #: takes its process down, each time
    CHANGES = "changes"  #: changes the item that it was given, then fails the first calls
    MEMORY = "memory"  #: needs more memory than the element has: Slurm ends the element
    LIMITED = "limited"  #: the server answers 429 the first calls
    FATAL = "fatal"  #: the first call says that nothing of the job can succeed
    BUG = "bug"  #: has a bug


_FLAKY_CALLS = 3
_CRASHES = 2
_USUAL = (Behaviour.OK,) * 8 + (Behaviour.BAD, Behaviour.FLAKY, Behaviour.BUG, Behaviour.CHANGES)
_RARE = (
    Behaviour.CRASHES,
    Behaviour.POISON,
    Behaviour.LIMITED,
    Behaviour.FATAL,
    Behaviour.MEMORY,
)


class SimHandler:
    """The handler of one run.

    Args:
        world: where the calls are counted.
        rng: decides what it does.
        items: number of items.
        item_s: mean seconds of a call.
        calm: every item is processed without an accident.
    """

    def __init__(
        self, world: World, rng: random.Random, items: int, item_s: float, *, calm: bool
    ) -> None:
        self._world = world
        self._item_s = item_s
        usual = _USUAL[:9] if calm else _USUAL
        self.behaviours = [rng.choice(usual) for _ in range(items)]
        if not calm:
            for behaviour in rng.sample(_RARE, rng.randint(0, len(_RARE))):
                self.behaviours[rng.randrange(items)] = behaviour
        for number, behaviour in enumerate(self.behaviours):
            if behaviour is not Behaviour.OK and not world.seen.happens(
                f"item k{number}", behaviour.value
            ):
                self.behaviours[number] = Behaviour.OK
        self.sends: list[float] = []
        #: The user has corrected the handler, and asks for more memory.
        self.corrected = False

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Process one item."""
        world, key, number = self._world, item["id"], item["n"]
        if item != {"id": f"k{number}", "n": number}:
            raise AssertionError(f"the handler got {item}, which is not the planned item")
        world.calls[key] += 1
        calls = world.calls[key]
        self.sends.append(world.schedule.now)
        rng = world.seen.rng_of(f"call {calls} of {key}")
        world.schedule.sleep(rng.expovariate(1 / self._item_s))
        _ACTIONS.get(self.behaviours[number], _succeed)(self, item, calls)
        return {"n": number, "square": number * number}

    def die(self) -> None:
        """The process ends here."""
        self._world.schedule.kill(self._world.schedule.current.host)
        raise Killed

    def end_element(self) -> None:
        """Slurm ends the element that this process belongs to."""
        world = self._world
        element = world.elements[world.schedule.current.host]
        world.controller.kill(element, ElementState.OUT_OF_MEMORY)
        raise Killed


def _succeed(_handler: SimHandler, _item: dict[str, Any], _calls: int) -> None:
    pass


def _bad(_handler: SimHandler, _item: dict[str, Any], _calls: int) -> None:
    raise ItemError(ErrorClass.BAD_INPUT, "bad")


def _bug(_handler: SimHandler, item: dict[str, Any], _calls: int) -> None:
    raise KeyError(f"of {item['id']}")


def _flaky(_handler: SimHandler, _item: dict[str, Any], calls: int) -> None:
    if calls <= _FLAKY_CALLS:
        raise ConnectionError("flaky")


def _change(_handler: SimHandler, item: dict[str, Any], calls: int) -> None:
    item.clear()
    item["changed"] = calls
    if calls <= _FLAKY_CALLS:
        raise TimeoutError("after a change")


def _crash(handler: SimHandler, _item: dict[str, Any], calls: int) -> None:
    if calls <= _CRASHES:
        handler.die()


def _poison(handler: SimHandler, _item: dict[str, Any], _calls: int) -> None:
    if not handler.corrected:
        handler.die()


def _memory(handler: SimHandler, _item: dict[str, Any], _calls: int) -> None:
    if not handler.corrected:
        handler.end_element()


def _limited(_handler: SimHandler, _item: dict[str, Any], calls: int) -> None:
    if calls <= _FLAKY_CALLS:
        raise RateLimited(2.0)


def _fatal(_handler: SimHandler, _item: dict[str, Any], calls: int) -> None:
    if calls == 1:
        raise FatalError("the key is wrong")


_ACTIONS: Mapping[Behaviour, Callable[[SimHandler, dict[str, Any], int], None]] = {
    Behaviour.BAD: _bad,
    Behaviour.BUG: _bug,
    Behaviour.FLAKY: _flaky,
    Behaviour.CHANGES: _change,
    Behaviour.CRASHES: _crash,
    Behaviour.POISON: _poison,
    Behaviour.MEMORY: _memory,
    Behaviour.LIMITED: _limited,
    Behaviour.FATAL: _fatal,
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

"""Two calls at a time: one stops at each of its steps, and the other continues.

Each request to the table, the bucket or the cluster is a step. Before its n-th step a call
is suspended while another runs, or its process dies there; so all orders are tried in which
one call stands still once, and a grid of those in which both do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.ttl_cache import TTLCache

_WAIT_S = 60.0


class Killed(BaseException):
    """The process dies here."""


@dataclass
class Steps:
    """Counts the steps of one call; at the n-th something happens, once.

    Args:
        at: the step, counted from 0; none where negative.
        event: what happens before it. Other threads of the call wait meanwhile.
    """

    at: int = -1
    event: Callable[[], None] = lambda: None
    seen: int = 0
    dead: bool = False
    lock: Any = field(default_factory=threading.RLock)

    def step(self) -> None:
        with self.lock:
            if self.dead:
                raise Killed
            self.seen += 1
            if self.seen == self.at + 1:
                self.event()

    def die(self) -> None:
        self.dead = True
        raise Killed


class Stepped:
    """An edge whose every request is a step."""

    def __init__(self, edge: Any, steps: Steps) -> None:
        self._edge = edge
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._edge, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._steps.step()
            result = found(*args, **kwargs)
            return iter(list(result)) if isinstance(result, Iterator) else result

        return call


def stepped(services: Services, steps: Steps) -> Services:
    """The services as one process has them."""
    bucket = services.bucket
    return replace(
        services,
        rows=Stepped(services.rows, steps),  # type: ignore[arg-type]  # it has the verbs
        objects=Stepped(services.objects, steps),  # type: ignore[arg-type]
        slurm=Stepped(services.slurm, steps),  # type: ignore[arg-type]
        bucket=lambda name: Stepped(bucket(name), steps),  # type: ignore[arg-type,return-value]
        readers=TTLCache(),
        conditional={},
    )


@dataclass
class Call:
    """One process: what it does, and its result."""

    services: Services
    work: Callable[[Services], Any]
    steps: Steps = field(default_factory=Steps)
    result: Any = None
    error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.work(stepped(self.services, self.steps))
        except (Exception, Killed) as error:
            self.error = error


def one_suspended(first: Call, at: int, other: Call) -> None:
    """The first stands still before a step while the other runs from its beginning to its end."""
    first.steps.at, first.steps.event = at, other.run
    first.run()
    if not other.steps.seen:
        other.run()


def one_killed(first: Call, at: int, other: Call) -> None:
    """The first dies before a step; then the other runs."""
    first.steps.at, first.steps.event = at, first.steps.die
    first.run()
    other.run()


def both_suspended(first: Call, at: int, other: Call, other_at: int) -> None:
    """The other begins where the first stands still, stands still itself, and ends last."""
    halted, released = threading.Event(), threading.Event()

    def halt() -> None:
        halted.set()
        assert released.wait(_WAIT_S)

    def run_other() -> None:
        other.run()
        halted.set()

    thread = threading.Thread(target=run_other)

    def begin_other() -> None:
        thread.start()
        assert halted.wait(_WAIT_S)

    other.steps.at, other.steps.event = other_at, halt
    first.steps.at, first.steps.event = at, begin_other
    first.run()
    released.set()
    if thread.ident is None:
        thread.start()
    thread.join(_WAIT_S)

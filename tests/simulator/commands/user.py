"""The user, who runs commands, and repeats each until it succeeds.

A command is a process of its own. It may be cut off, or stand still, after any of its requests. Its
user may also start it twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.errors import ServiceError, UserError
from tests.simulator.engine.schedule import Host, Killed, SimSignal
from tests.simulator.world import World

#: What a command does.
Verb = Callable[[Services], Any]

#: A command is cut off or stands still after at most so many requests.
_MOST_REQUESTS = 80
_LONGEST_PAUSE_S = 600.0
#: Requests after which another command may decide what this one is about to write. Two names are
#: two requests in a row: a submission's row is read right after the size of arrays.
_BEFORE_WRITES = (
    *("cluster", "cluster", "scontrol", "sacct", "object put", "submit refused"),
    *("scontrol put", "scontrol put"),
)
#: How often a user repeats a command that is refused although nothing else happens.
_MOST_REFUSALS = 4
#: The same for all commands of a run: what they need may be refused, too.
_MOST_REFUSALS_EVER = 100


class Stuck(Exception):
    """The user can't get a command done."""


@dataclass(eq=False)
class Command:
    """One process of the user."""

    name: str
    host: Host
    ended: SimSignal
    value: Any = None
    error: Exception | None = None
    done: bool = False


class User:
    """Runs commands.

    Args:
        world: where.
        careful: nothing happens to their commands.
    """

    def __init__(self, world: World, *, careful: bool) -> None:
        self._world = world
        self._careful = careful
        self._refusals = 0
        self.running: dict[Command, None] = {}
        self._commands = 0

    def until_done(self, name: str, verb: Verb, prepare: Callable[[], None]) -> Any:
        """Repeat a command until it succeeds; `prepare` does what its message asks for.

        Raises:
            Stuck: if it never does.
        """
        self._commands += 1
        rng, refusals = self._world.seen.rng_of(f"user {self._commands}"), 0
        unlucky = 0 if self._careful else rng.randint(0, 3)
        while True:
            twice = not self._careful and rng.random() < 0.15
            if twice and self._world.seen.happens(f"{name} {self._commands}", "twice"):
                self.begin(name, verb, disturbed=True)
            command = self.begin(name, verb, disturbed=unlucky > 0)
            command.ended.wait(rng.choice((30.0, _LONGEST_PAUSE_S)) if unlucky > 0 else None)
            unlucky -= 1
            if command.done:
                return command.value
            if isinstance(command.error, UserError):
                refusals += not self.running
                self._refusals += not self.running
                if refusals > _MOST_REFUSALS or self._refusals > _MOST_REFUSALS_EVER:
                    raise Stuck(f"{name} is refused again and again: {command.error}")
                prepare()
            self._world.schedule.sleep(rng.uniform(1, 30))

    def begin(
        self,
        name: str,
        verb: Verb,
        *,
        disturbed: bool,
        longest_s: float = _LONGEST_PAUSE_S,
        waits: bool = False,
    ) -> Command:
        """Start a command; do not wait for it.

        A `disturbed` one stands still for `longest_s`. One that `waits` itself does not count as
        running: nobody waits for it.
        """
        world = self._world
        host = world.host(name)
        rng = world.seen.rng_of(host.name)
        command = Command(name, host, SimSignal(world.schedule))
        disturbance = self._disturbance(host, rng, longest_s) if disturbed else _nothing
        network = world.network(rng, disturbance)
        services = world.services(host, network)

        def run() -> None:
            if not waits:
                self.running[command] = None
            try:
                command.value = verb(services)
                command.done = True
                world.command_done(host)
                world.say(f"{host.name}: done")
            except (ServiceError, UserError) as error:
                command.error = error
                world.say(f"{host.name}: {error}")
            finally:
                self.running.pop(command, None)
                command.ended.set()

        world.say(f"{host.name}: begins")
        world.schedule.spawn(host, run)
        return command

    def wait(self) -> None:
        """Until no command runs."""
        while self.running:
            self._world.schedule.sleep(5.0)

    def _disturbance(
        self, host: Host, rng: random.Random, longest_s: float
    ) -> Callable[[str], None]:
        """What happens to a command after one of its requests was answered."""
        kind, left = rng.choice(("cut", "sleep")), int(_MOST_REQUESTS ** rng.random())
        counted = ""
        if rng.random() < 0.3:
            kind, counted, left = "sleep", rng.choice(_BEFORE_WRITES), rng.randint(1, 3)
            # Two in a row seldom come again.
            left = 1 if " " in counted else left
        previous = ""

        def disturb(name: str) -> None:
            nonlocal left, previous
            both, previous = f"{previous} {name}", name
            if counted not in ("", name, both):
                return
            left -= 1
            if left or not self._world.seen.happens(f"{host.name} after {name}", kind):
                return
            if kind == "cut":
                raise Killed
            self._world.schedule.pause(host, rng.uniform(1, longest_s))

        return disturb


def _nothing(_name: str) -> None:
    """Let a command continue."""

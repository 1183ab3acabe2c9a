"""Daemons of the stack that are killed, and started again some seconds later.

Each is killed by SIGKILL with all its children. The start takes seconds, so it runs in a thread
of its own, one for Slurm and one for Airflow. At the end every daemon is running again.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.stack import airflow, slurm
from tests.stack.process import Running, known_services, wait_until, with_children
from tests.stack.settings import Settings, StackError

_DOWN_S = (3.0, 8.0)
_END_S = 10.0
_START_S = 300.0


@dataclass
class Daemons:
    """The daemons that a round may kill.

    Args:
        settings: of the stack that is up.
        variables: the stack's environment, for Airflow's processes.
        rng: chooses how long each stays down.
        say: called with a line for each start.
    """

    settings: Settings
    variables: Mapping[str, str]
    rng: random.Random
    say: Callable[[str], None]
    _due: dict[str, float] = field(default_factory=dict)
    _starting: dict[str, threading.Thread] = field(default_factory=dict)
    _failed: list[str] = field(default_factory=list)

    def kill(self, prefix: str) -> str:
        """Kill a daemon whose name begins so; its name, or nothing where none may be killed now."""
        family = _family(prefix)
        running = sorted(
            (each for each in self._known() if each.name.startswith(prefix) and each.alive),
            key=lambda each: each.name,
        )
        if not running or family in self._due or family in self._starting:
            return ""
        victim = self.rng.choice(running)
        pids = with_children(victim.pid)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # Before it has ended, it would be found alive.
        if not wait_until(lambda: not victim.alive, _END_S):
            raise StackError(f"{victim.name}: process {victim.pid} does not end")
        self._due[family] = time.monotonic() + self.rng.uniform(*_DOWN_S)
        return f"{victim.name} (pid {victim.pid})"

    def step(self) -> None:
        """Start what is due; returns at once.

        Raises:
            StackError: if a daemon could not be started again.
        """
        for family in [each for each, thread in self._starting.items() if not thread.is_alive()]:
            del self._starting[family]
        if self._failed:
            raise StackError("; ".join(self._failed))
        now = time.monotonic()
        for family in [each for each, due in self._due.items() if due <= now]:
            del self._due[family]
            thread = threading.Thread(target=self._start, args=(family,), daemon=True)
            self._starting[family] = thread
            thread.start()

    def close(self) -> None:
        """Have every daemon running again.

        Raises:
            StackError: if one can't be started.
        """
        for thread in self._starting.values():
            thread.join(_START_S)
        self._starting.clear()
        families = {_family(each.name) for each in self._known() if not each.alive}
        for family in sorted(families | set(self._due)):
            self._start(family)
        self._due.clear()
        if self._failed:
            raise StackError("; ".join(self._failed))

    def _start(self, family: str) -> None:
        try:
            if family == "airflow":
                started = airflow.start(self.settings, self.variables)
            else:
                started = slurm.start(self.settings)
        except StackError as error:
            self._failed.append(str(error))
        else:
            self.say(f"started {', '.join(started) or f'nothing of {family}'}")

    def _known(self) -> list[Running]:
        return [each for each in known_services(self.settings.state) if _family(each.name)]


def _family(name: str) -> str:
    """What starts a daemon of this name; empty for one that a round leaves alone."""
    if name.startswith("airflow-"):
        return "airflow"
    return "slurm" if name.startswith("slurm") else ""

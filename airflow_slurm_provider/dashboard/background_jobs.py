"""Actions that take long, each in a thread of its own, with a status to ask for.

An action is named by what it does to which job, so that asking for one that still runs
joins it: no second one is started. They live in this process alone. Should it end, whatever
was begun is finished by asking again: the coordinator's verbs go on where they stopped.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from logging import getLogger
from typing import Any, Literal

from slurm_worker.errors import SlurmWorkerError

log = getLogger(__name__)

#: Runs that ended are told of for so long.
_KEEP_S = 3600.0


@dataclass(frozen=True, slots=True)
class Run:
    """One action.

    Args:
        name: names it for whoever asks how it is.
        state: how it is.
        said: what the coordinator told while it worked.
        result: what came of it.
        error: why it failed; empty where it didn't.
    """

    name: str
    state: Literal["running", "done", "failed"] = "running"
    said: tuple[str, ...] = ()
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""


class Runs:
    """The actions of this process; safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._runs: dict[str, tuple[Run, float]] = {}

    def start(
        self, name: str, act: Callable[[Callable[[str], None]], dict[str, Any]]
    ) -> tuple[Run, bool]:
        """Begin an action, or join the one of this name that runs.

        Args:
            name: of the action.
            act: does it; it is given a function to tell of progress, and returns its result.

        Returns:
            The action, and whether it was begun now.
        """
        with self._lock:
            self._sweep()
            standing = self._runs.get(name)
            if standing is not None and standing[0].state == "running":
                return standing[0], False
            run = Run(name)
            self._runs[name] = run, self._clock()
        threading.Thread(target=self._act, args=(name, act), name=name, daemon=True).start()
        return run, True

    def get(self, name: str) -> Run | None:
        """How an action is; None if this process knows none of this name."""
        with self._lock:
            found = self._runs.get(name)
        return None if found is None else found[0]

    def _act(self, name: str, act: Callable[[Callable[[str], None]], dict[str, Any]]) -> None:
        try:
            result = act(lambda line: self._change(name, line))
        except SlurmWorkerError as error:
            self._change(name, state="failed", error=" ".join(str(error).split()))
        except Exception as error:
            log.error("the action %s failed: %s", name, traceback.format_exc())
            self._change(name, state="failed", error=f"{type(error).__name__}: {error}")
        else:
            self._change(name, state="done", result=result)

    def _change(self, name: str, line: str = "", **changes: Any) -> None:
        with self._lock:
            run, _ = self._runs[name]
            said = (*run.said, line) if line else run.said
            self._runs[name] = replace(run, said=said, **changes), self._clock()

    def _sweep(self) -> None:
        old = self._clock() - _KEEP_S
        self._runs = {
            name: (run, when)
            for name, (run, when) in self._runs.items()
            if run.state == "running" or when > old
        }

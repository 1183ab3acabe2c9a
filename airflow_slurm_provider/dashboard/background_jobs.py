"""Actions that take long, each in its own thread, with a state that requests can read.

An action is named by its kind and its job. A request for one that still runs joins it: no second
one is started. They exist in this process only. If it ends, repeat the request: the coordinator's
functions continue where they stopped.
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

#: Gets a function that logs a line, and returns the action's result.
Action = Callable[[Callable[[str], None]], dict[str, Any]]
#: Seconds for which an ended action is kept.
_KEEP_S = 3600.0


@dataclass(frozen=True, slots=True)
class Run:
    """One action."""

    name: str
    state: Literal["running", "done", "failed"] = "running"
    said: tuple[str, ...] = ()  #: lines that the coordinator has logged
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    begun: bool = False  #: this request has started it; false if it was running already


class Runs:
    """The actions of this process; safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._runs: dict[str, tuple[Run, float]] = {}

    def start(self, name: str, act: Action) -> Run:
        """Start an action, or join the one of this name that runs."""
        with self._lock:
            self._sweep()
            last = self._runs.get(name)
            if last is not None and last[0].state == "running":
                return last[0]
            self._runs[name] = Run(name), self._clock()
        threading.Thread(target=self._act, args=(name, act), name=name, daemon=True).start()
        return Run(name, begun=True)

    def get(self, name: str) -> Run | None:
        """An action; None if this process has none of this name."""
        with self._lock:
            found = self._runs.get(name)
        return None if found is None else found[0]

    def _act(self, name: str, act: Action) -> None:
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

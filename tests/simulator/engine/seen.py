"""What happened in a run: requests, faults, and lines for a person; and what may go wrong."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from slurm_worker.protocol.ports import ObjectInfo, Row
from tests.simulator.stores.recent import Recent


@dataclass
class Seen:
    """The record of one run.

    Everything that goes wrong is an event with a name, and happens only if `happens` allows it. So
    a run can be repeated with fewer events. An event's name does not depend on the other events,
    and neither do the random numbers that belong to it; see `rng_of`.
    """

    seed: int = 0
    #: The events that may happen; all if there is no such list.
    keep: frozenset[str] | None = None
    now: Callable[[], float] = lambda: 0.0  #: simulated seconds
    #: Whether the lines tell each write, too.
    follow: bool = False
    requests: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)  #: events, by kind
    #: Events that happened, in their order.
    events: dict[str, None] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    #: Distinct bodies ever stored under a marker's key.
    markers: dict[str, set[str]] = field(default_factory=dict)
    #: Attempts of each task, in the order in which they were granted.
    attempts: dict[str, list[int]] = field(default_factory=dict)
    #: When each marker was first stored.
    committed: dict[str, float] = field(default_factory=dict)
    #: Action, sort key and attempt of what happened to a task where its process, or the table,
    #: failed before it was in the audit log.
    unrecorded: set[tuple[str, str, int]] = field(default_factory=set)
    #: By partition, the rows that have changed a moment ago.
    rows: dict[str, Recent[Row]] = field(default_factory=dict)
    #: The same of objects.
    objects: Recent[ObjectInfo] = field(default_factory=Recent)
    #: Changes of the dataset's manifest: "dataset", state before and state after.
    transitions: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    #: By key, the conditional PUTs that are under way.
    writing: Counter[str] = field(default_factory=Counter)
    #: The dataset's state and version
    _dataset: tuple[str, str] = ("absent", "")

    def happens(self, event: str, kind: str) -> bool:
        """Whether an event may happen now; then it is counted by its kind.

        Args:
            event: its name in this run, such as ``submit 2 request 14``.
            kind: what goes wrong, such as ``lost_reply``.
        """
        name = f"{event} {kind}"
        if self.keep is not None and name not in self.keep:
            return False
        self.events[name] = None
        self.faults[kind] += 1
        self.say(f"! {name}")
        return True

    def say(self, line: str) -> None:
        """Append a line, with the time."""
        self.lines.append(f"{self.now():9.2f}  {line}")

    def write(self, who: str, what: str) -> None:
        """A write of a process was carried out or refused."""
        if self.follow:
            self.say(f"{who}: {what}")

    def rng_of(self, name: str) -> random.Random:
        """A generator for what has this name in the run, whatever happened before."""
        return random.Random(f"{self.seed} {name}")

    def manifest(self, body: bytes) -> None:
        """A dataset's manifest was written: an aggregation publishes a version, `gc` sweeps."""
        version = str(json.loads(body)["folder"])
        before, known = self._dataset
        state = "swept" if version == known else "published"
        if state == "published" or before != state:
            self.transitions["dataset", before, state] += 1
        self._dataset = state, version

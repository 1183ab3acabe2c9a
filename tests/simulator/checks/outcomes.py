"""How each item ended in each round, as the committed parts say, and whether it could end so."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from slurm_worker.errors import ErrorClass
from slurm_worker.protocol.job_store import Marker
from slurm_worker.protocol.keys import TaskId
from slurm_worker.protocol.tasks import TaskRow
from tests.simulator.checks.rows import Violation
from tests.simulator.handler import SimHandler
from tests.simulator.world import World


@dataclass
class Outcomes:
    """By round, how each of its items ended: the class of its failure, empty for a success."""

    by_round: dict[int, dict[str, str]] = field(default_factory=dict)
    #: The same by the task whose marker names the part
    by_task: dict[TaskId, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, world: World, markers: Mapping[TaskId, Marker]) -> Outcomes:
        """Read the parts that the markers name.

        Raises:
            Violation: if a part is not what was committed, or a round has an item twice.
        """
        found = cls()
        twice: Counter[tuple[int, str]] = Counter()
        for marker in markers.values():
            number = int(marker.task.partition("-")[0])
            items = _items_of(world, marker)
            twice.update((number, key) for key in items)
            found.by_task[marker.task] = items
            found.by_round.setdefault(number, {}).update(items)
        again = sorted(item for item, count in twice.items() if count > 1)
        if again:
            raise Violation(f"items are twice in the parts of a round: {again}")
        return found

    def final(self) -> dict[str, str]:
        """How each item ended in the last round that has it."""
        return {key: end for number in sorted(self.by_round) for key, end in self._of(number)}

    def _of(self, number: int) -> list[tuple[str, str]]:
        return list(self.by_round[number].items())


def _items_of(world: World, marker: Marker) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in marker.parts:
        data = world.objects.get(part.key)
        if data is None:
            raise Violation(f"{marker.task}: part {part.key} is not there")
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise Violation(f"{marker.task}: part {part.key} is not what was committed")
        for line in gzip.decompress(data).splitlines():
            record = json.loads(line)
            if record["_key"] in found:
                raise Violation(f"{marker.task} has item {record['_key']} twice in its parts")
            found[record["_key"]] = record["class"] if part.kind == "errors" else ""
    return found


def check_ends(
    world: World, handler: SimHandler, outcomes: Outcomes, rows: Mapping[TaskId, TaskRow]
) -> None:
    """Each item ended as one of its calls did, or by the death of processes that ran it.

    Raises:
        Violation: naming the item.
    """
    died: Counter[str] = Counter()
    hung: set[str] = set()
    for (task, position), count in world.deaths.items():
        row = rows[TaskId(task)]
        key = world.truth.read_slice(row.round_no, row.where).keys[position]
        died[key] += count
        if (task, position) in world.hangs:
            hung.add(key)
    for number, items in outcomes.by_round.items():
        for key, end in items.items():
            allowed = set(handler.ends[key])
            if died[key] > 1:
                allowed.add(ErrorClass.WORKER_CRASH.value)
            if key in hung:
                allowed.add(ErrorClass.TIMEOUT.value)
            if end not in allowed:
                raise Violation(
                    f"{key} of round {number} ended as {end or 'a success'}; its calls ended as "
                    f"{sorted(allowed)}"
                )

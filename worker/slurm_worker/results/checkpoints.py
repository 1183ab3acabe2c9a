"""Checkpoints: an attempt's outcomes so far on S3, for whoever has the task next.

A checkpoint is a hint, never truth: one that is missing, damaged, or made from other
input or other code is not used, and the attempt starts over. It is made only where doing
the work again would cost more than uploading it.

Requests: one PUT per checkpoint, noted in the heartbeat that is written anyway; one GET
by the next attempt.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.keys import TaskId
from slurm_worker.results.journal import Outcome

#: A checkpoint is due when this many times its own cost has been worked since the last.
_WORTH = 10.0


@dataclass(frozen=True, slots=True)
class Origin:
    """What a checkpoint's outcomes were made from; other outcomes are not continued.

    Args:
        task: the task.
        input_sha256: digest of its slice.
        code: digest and name of the handler.
    """

    task: TaskId
    input_sha256: str
    code: str


class Checkpoints:
    """Writes and reads the checkpoints of one attempt.

    Args:
        store: the job's objects.
        origin: what the outcomes are made from.
        attempt: names the objects.
        every_s: seconds between two, at the least; 0 turns them off.
    """

    def __init__(self, store: JobStore, origin: Origin, attempt: int, every_s: float) -> None:
        self._store = store
        self._origin = origin
        self._attempt = attempt
        self._every_s = every_s
        self._number = 0
        self._cost_s = 0.0
        self._items = 0

    def due(self, worked_s: float) -> bool:
        """Whether what was worked since the last checkpoint is worth another."""
        return self._every_s > 0 and worked_s >= max(self._every_s, _WORTH * self._cost_s)

    def worth_saving(self, worked_s: float) -> bool:
        """Whether a worker that leaves the task should upload it first."""
        return self._every_s > 0 and worked_s >= max(1.0, _WORTH * self._cost_s)

    def save(self, outcomes: Sequence[Outcome]) -> str:
        """Upload the outcomes; return what the row notes: ``key sha256``. Empty if no news."""
        items = sum(outcome.items for outcome in outcomes)
        if items <= self._items:
            return ""
        head = {"origin": [self._origin.task, self._origin.input_sha256, self._origin.code]}
        lines = [json.dumps(head), *(json.dumps(outcome) for outcome in outcomes)]
        data = zlib.compress("\n".join(lines).encode(), 3)
        key = self._store.paths.checkpoint(self._origin.task, self._attempt, self._number)
        self._store.objects.put(key, data)
        self._number += 1
        self._items = items
        return f"{key.rsplit('/', 1)[1]} {hashlib.sha256(data).hexdigest()}"

    def took(self, seconds: float) -> None:
        """Note what the last upload cost."""
        self._cost_s = seconds

    def load(self, note: str) -> list[Outcome]:
        """The outcomes of a checkpoint that a row notes; none if it can't be used."""
        name, _, digest = note.partition(" ")
        data = self._store.objects.get(self._store.paths.checkpoints(self._origin.task) + name)
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            return []
        head, *lines = zlib.decompress(data).decode().split("\n")
        if json.loads(head)["origin"] != [
            self._origin.task,
            self._origin.input_sha256,
            self._origin.code,
        ]:
            return []
        return [Outcome(*json.loads(line)) for line in lines]

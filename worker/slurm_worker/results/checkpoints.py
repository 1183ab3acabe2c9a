"""Checkpoints: an attempt's outcomes so far on S3, for the next holder of the task.

A checkpoint is a hint, never the truth: one that is missing, damaged, or made from other
input or other code is not used, and the attempt starts over. It is made only where doing
the work again would cost more than the upload.

Requests: one PUT per checkpoint, which the next heartbeat names; one GET by the next attempt.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence

from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.tasks import Lease
from slurm_worker.results.journal import Outcome

#: A checkpoint is due when this many times its own cost has been worked since the last.
_WORTH = 10.0


class Checkpoints:
    """Writes and reads the checkpoints of one attempt.

    `code` is digest and name of the handler. At least `every_s` seconds pass between two; 0 turns
    them off.
    """

    def __init__(self, store: JobStore, lease: Lease, code: str, every_s: float) -> None:
        self._store, self._lease = store, lease
        #: What the outcomes were made from; an attempt continues no others.
        self._origin = [lease.task, lease.row.where.sha256, code]
        self._every_s = every_s
        self._number = self._items = 0
        self.cost_s = 0.0  #: seconds that the last upload took

    def due(self, worked_s: float, *, released: bool = False) -> bool:
        """Whether the work since the last one is worth another; a `released` task needs less."""
        least_s = 1.0 if released else self._every_s
        return self._every_s > 0 and worked_s >= max(least_s, _WORTH * self.cost_s)

    def save(self, outcomes: Sequence[Outcome]) -> str:
        """Upload the outcomes; the row's reference, ``key sha256``, empty if nothing is new."""
        items = sum(outcome.items for outcome in outcomes)
        if items <= self._items:
            return ""
        head = {"origin": self._origin}
        lines = [json.dumps(head), *(json.dumps(outcome) for outcome in outcomes)]
        data = zlib.compress("\n".join(lines).encode(), 3)
        key = self._store.paths.checkpoint(self._lease.task, self._lease.attempt, self._number)
        self._store.objects.put(key, data)
        self._number += 1
        self._items = items
        return f"{key.rsplit('/', 1)[1]} {hashlib.sha256(data).hexdigest()}"

    def load(self, ref: str) -> list[Outcome]:
        """The outcomes of a checkpoint, by the row's reference; none if it can't be used."""
        name, _, digest = ref.partition(" ")
        data = self._store.objects.get(self._store.paths.checkpoints(self._lease.task) + name)
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            return []
        head, *lines = zlib.decompress(data).decode().split("\n")
        if json.loads(head)["origin"] != self._origin:
            return []
        return [Outcome(*json.loads(line)) for line in lines]

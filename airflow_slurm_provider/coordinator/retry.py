"""Planning a retry: which failed items go into a new round, which failed tasks go back.

An item's latest outcome decides: what failed in round r and was tried again in a later
round is no longer round r's. The items come from the committed parts' errors, streamed;
memory grows with the items that were ever retried (16 bytes each), not with the job.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from airflow_slurm_provider.coordinator.config import JobSpec
from airflow_slurm_provider.coordinator.services import Services
from slurm_worker import keys
from slurm_worker.errors import ErrorClass
from slurm_worker.jobs import JobRow
from slurm_worker.keys import TaskState
from slurm_worker.parts import KEY_FIELD, lines_of
from slurm_worker.store import JobStore, unpack_segment
from slurm_worker.table import TaskRow, TaskTable


@dataclass(frozen=True, slots=True)
class Selector:
    """Which failures are tried again.

    Args:
        spec: the job's policy: rounds per error class.
        classes: named by the user, and then all of these whatever the policy's rounds say;
            empty where the policy decides.
    """

    spec: JobSpec
    classes: tuple[str, ...]

    def wants(self, error_class: str, round_no: int) -> bool:
        """Whether a failure of this class, in this round, is tried again."""
        if self.classes:
            return error_class in self.classes
        return round_no < self.spec.rounds_for(ErrorClass(error_class))


@dataclass(slots=True)
class FailedItems:
    """The failed items of the rounds before `before`, split by a selector.

    Iterating yields (key, item) of those to try again and fills the counts.
    """

    store: JobStore
    selector: Selector
    before: int
    retried: Counter[str] = field(default_factory=Counter)
    given_up: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Stream the items in order of their tasks."""
        last_round = self._last_rounds()
        for marker in self.store.markers():
            round_no, _ = keys.parse_task_id(marker.task)
            if round_no >= self.before or not marker.failed:
                continue
            for part in marker.parts:
                if part.kind != "errors":
                    continue
                for line in lines_of(self.store.read_part(part), part.key).splitlines():
                    record = json.loads(line)
                    key, error_class = record[KEY_FIELD], record["class"]
                    if last_round.get(_digest(key), 0) > round_no:
                        continue
                    if self.selector.wants(error_class, round_no):
                        self.retried[error_class] += 1
                        yield key, record["item"]
                    else:
                        self.given_up[error_class] += 1

    def _last_rounds(self) -> dict[bytes, int]:
        """The last round of each item that was ever retried, by digest of its key."""
        found: dict[bytes, int] = {}
        for round_no in range(1, self.before):
            for segment in self.store.objects.list(self.store.paths.segments(round_no)):
                data = self.store.objects.get(segment)
                for key, _ in unpack_segment(data or b""):
                    found[_digest(key)] = round_no
        return found


def failed_tasks(services: Services, job: JobRow, selector: Selector) -> list[TaskRow]:
    """Tasks that failed or were quarantined with a class that is to be tried again."""
    table = TaskTable(
        services.rows, job.job, job.shards, selector.spec.resolve_lease(), services.clock
    )
    return [
        row
        for shard in range(job.shards)
        for row in table.all_rows(shard)
        if row.state in (TaskState.FAILED, TaskState.QUARANTINED)
        and selector.wants(row.error_class, row.round_no)
    ]


def reopen(table: TaskTable, rows: list[TaskRow], round_no: int, log: Callable[[str], None]) -> int:
    """Put the tasks back; return how many were not put back by somebody else meanwhile."""
    count = sum(table.reopen(row, f"retry round {round_no}") for row in rows)
    if count:
        log(f"put {count:,} failed tasks back")
    return count


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()

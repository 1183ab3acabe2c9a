"""The failures of a job, read from its committed parts, for retries and for `slurmctl errors`.

An item's latest outcome decides: a failure is superseded if a later round has tried the item
again. Memory does not grow with the job.

Requests: a list per thousand markers and a GET for each; per part of errors a GET and the read of
its task's row; those of `slurm_worker.results.superseded` and, for tasks that were given up, of
`snapshot.py`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.snapshot import read_snapshot
from airflow_slurm_provider.units import format_count
from slurm_worker.errors import ServiceError, with_place
from slurm_worker.prefetch import prefetch
from slurm_worker.protocol.job_store import JobStore, Marker, Part
from slurm_worker.protocol.keys import JobId, TaskId, TaskState, parse_task_id
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.results.parts import KEY_FIELD, lines_of, message_of
from slurm_worker.results.superseded import RetriedItems

_EXAMPLES = 3
_MOST_GROUPS = 500
#: Parts of a message that differ between items, and their replacements; in order.
_VARIABLE = [
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE), "<uuid>"),
    (re.compile(r"https?://[^\s'\"]+"), "<url>"),
    (re.compile(r"\b0x[0-9a-f]+\b", re.IGNORECASE), "<hex>"),
    (re.compile(r"(?<![\w/])/(?:[\w.@%+-]+/)*[\w.@%+-]+"), "<path>"),
    (re.compile(r"'[^']*'|\"[^\"]*\""), "<text>"),
    (re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{12,}\b", re.IGNORECASE), "<hex>"),
    (re.compile(r"\b\w*\d\w*\b"), "<n>"),
]


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed outcome of one item."""

    task: TaskId
    key: str
    error_class: str
    message: str
    place: str  #: of a handler's bug, in the user's code
    superseded: bool  #: a later round has the item again
    at: float  #: when, in seconds since the epoch, by the worker's clock
    node: str  #: where
    item: dict[str, Any]  #: the item itself
    done: bool  #: the table has its task as done, so that a job's totals count it

    @property
    def round_no(self) -> int:
        """The round in which it failed."""
        return parse_task_id(self.task)[0]


@contextmanager
def retried_items(
    store: JobStore, drafts: Sequence[int], sizes: Sequence[int] = ()
) -> Iterator[RetriedItems]:
    """The items of a job's rounds after the first; `drafts` are those of its rounds, in order.

    `sizes` are the rounds' numbers of items; 0 for a round where it is not known.

    Raises:
        ServiceError: if the store does not list all items of a round.
    """
    with (
        tempfile.TemporaryDirectory(prefix="airflow-slurm-retried-") as folder,
        closing(RetriedItems(Path(folder) / "retried.sqlite")) as found,
    ):
        for number, items in found.read(store, dict(list(enumerate(drafts))[1:])).items():
            planned = sizes[number] if sizes else 0
            if planned and items != planned:
                raise ServiceError(
                    f"{store.paths.segments(number)}: the store lists {items:,} of the "
                    f"{format_count(planned, 'item')} of round {number}",
                    "try again; restore the objects below it if some are missing",
                )
        yield found


def read_failures(
    store: JobStore, retried: RetriedItems, rounds: Iterable[int], table: TaskTable | None
) -> Iterator[Failure]:
    """The failures of these rounds, in order of their tasks within each.

    `retried` are the items of later rounds. Without a `table`, markers are not checked against
    the rows of their tasks.

    Raises:
        UserError: if a marker was made from other items than those of its task.
    """
    for round_no in rounds:
        markers = (marker for marker in store.markers(round_no) if marker.failed)
        parts = ((marker, part) for marker in markers for part in marker.parts)
        errors = (pair for pair in parts if pair[1].kind == "errors")
        with closing(prefetch(lambda pair: _read(store, table, *pair), errors)) as read:
            for (marker, _), (data, done) in read:
                yield from _failures(marker, data, retried, done=done)


@dataclass(slots=True)
class FailureGroup:
    """Failures of one class whose messages differ only in numbers and names."""

    of: str  #: ``item``, or ``task`` where whole tasks were given up
    error_class: str
    message: str  #: in full where all failures have the same, else normalised
    count: int = 0  #: items that failed so and were not tried again since
    superseded: int = 0  #: items that failed so and were tried again
    #: The first few keys (or task ids), with the message in full
    examples: list[tuple[str, str]] = field(default_factory=list)
    nodes: Counter[str] = field(default_factory=Counter)  #: failures by node
    first: float = 0.0  #: when the first failed, in seconds since the epoch; 0 where unknown
    last: float = 0.0

    def add(
        self, name: str, message: str, node: str = "", at: float = 0.0, *, superseded: bool = False
    ) -> None:
        """Count one more."""
        self.superseded += superseded
        self.count += not superseded
        if len(self.examples) < _EXAMPLES:
            self.examples.append((name, message))
        if node:
            self.nodes[node] += 1
        if at:
            self.first = min(self.first or at, at)
            self.last = max(self.last, at)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        examples = [{"key": key, "message": message} for key, message in self.examples]
        return {**asdict(self), "examples": examples, "nodes": dict(self.nodes)}


def explain(services: Services, job_id: JobId, error_class: str = "") -> list[FailureGroup]:
    """A job's failures by class and kind of message, the most frequent first.

    Raises:
        UserError: if there is no such job, or a part is not what was committed.
    """
    snapshot = read_snapshot(services, job_id)
    drafts = [round_row.draft for round_row in snapshot.rounds]
    sizes = [round_row.items for round_row in snapshot.rounds]
    table = services.tasks(snapshot.job)
    store = services.store(job_id)
    groups: dict[tuple[str, str, str], FailureGroup] = {}

    def group(of: str, name: str, message: str, place: str = "") -> FailureGroup:
        which = (of, name, with_place(normalise(message), place))
        if which not in groups and len(groups) >= _MOST_GROUPS:
            which = (of, name, "(further messages)")
        whole = with_place(message, place)
        found = groups.setdefault(which, FailureGroup(of, name, whole))
        if found.message != whole:
            found.message = which[2]
        return found

    with retried_items(store, drafts, sizes) as retried:
        for failure in read_failures(store, retried, range(len(drafts)), table):
            if error_class in ("", failure.error_class):
                message, place = failure.message, failure.place
                group("item", failure.error_class, message, place).add(
                    failure.key,
                    with_place(message, place),
                    failure.node,
                    failure.at,
                    superseded=failure.superseded,
                )
    for row in sorted(snapshot.ended, key=lambda row: row.sk):
        if error_class in ("", row.error_class):
            group("task", row.error_class, row.error).add(row.task, row.error)
    return sorted(groups.values(), key=lambda kind: (-kind.count, -kind.superseded, kind.message))


def cured_by_class(services: Services, job_id: JobId) -> Counter[str]:
    """Failures of items that a later round had and that have succeeded, by error class."""
    jobs = services.jobs(job_id)
    table = services.tasks(jobs.get())
    rounds = jobs.rounds()
    drafts = [round_row.draft for round_row in rounds]
    store = services.store(job_id)
    cured: Counter[str] = Counter()
    with retried_items(store, drafts, [round_row.items for round_row in rounds]) as retried:
        # The last round first: whether an item failed for good is known before its first failure.
        for failure in read_failures(store, retried, reversed(range(len(drafts))), table):
            if not failure.superseded:
                retried.note_failing(failure.key)
            elif not retried.failing(failure.key):
                cured[failure.error_class] += 1
    return cured


def normalise(message: str) -> str:
    """The message without what differs from item to item: numbers, quoted text, paths, URLs."""
    for pattern, shown in _VARIABLE:
        message = pattern.sub(shown, message)
    return message


def _read(
    store: JobStore, table: TaskTable | None, marker: Marker, part: Part
) -> tuple[bytes, bool]:
    """The lines of a part, and whether its task is done in the table."""
    row = None if table is None else table.find(marker.task)
    if table is not None:
        marker.check(None if row is None else row.where)
    done = row is None or row.state is TaskState.DONE
    return lines_of(store.read_part(part), part.key), done


def _failures(
    marker: Marker, data: bytes, retried: RetriedItems, *, done: bool
) -> Iterator[Failure]:
    round_no, _ = parse_task_id(marker.task)
    for line in data.splitlines():
        record = json.loads(line)
        key = record[KEY_FIELD]
        yield Failure(
            marker.task,
            key,
            record["class"],
            *message_of(record),
            retried.superseded(key, round_no),
            record["at"],
            marker.slurm.get("node", ""),
            record["item"],
            done,
        )

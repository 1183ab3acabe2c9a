"""A job's objects: task slices, parts and the ``.done`` markers that commit them.

The marker is *the* commit point. It is created with ``If-None-Match: *``, so one of several
attempts wins, whatever the table or a paused process says. Readers trust markers only, never
a listing of parts.

Requests per task: one ranged GET for the slice, one PUT per part and one for the marker. There is
a second part only if items failed. One GET follows if another attempt may have won.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from slurm_worker.errors import ServiceError, UserError
from slurm_worker.prefetch import prefetch
from slurm_worker.protocol import keys
from slurm_worker.protocol.keys import TaskId
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.ports import ObjectStore
from slurm_worker.protocol.slices import Slice, TaskItems, intact, slices_of


class ForeignMarker(UserError):
    """A task's marker was made from other items."""


@dataclass(frozen=True, slots=True)
class Part:
    """One committed object of a task: `kind` is ``rows`` or ``errors``, `rows` its lines."""

    kind: str
    key: str
    size: int
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class Marker:
    """The content of a task's ``.done``; `items` = `ok` + the sum of `failed`.

    A task that kept killing its workers is bisected: its marker names the two tasks that
    have its items (`split`), and holds none itself. So the marker also decides between a
    late attempt at the whole and the halves. `requests` counts the worker's requests to AWS
    since its last marker, by kind.
    """

    job: str
    task: TaskId
    attempt: int
    worker: str
    items: int
    ok: int
    rows: int
    failed: dict[str, int] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    input_sha256: str = ""
    handler: str = ""
    code_sha256: str = ""
    slurm: dict[str, str] = field(default_factory=dict)
    started: float = 0.0
    finished: float = 0.0
    split: tuple[TaskId, ...] = ()
    requests: dict[str, int] = field(default_factory=dict)
    v: int = 1

    def to_json(self) -> bytes:
        """The marker's bytes."""
        # `asdict` would copy every value, which takes longer than writing them.
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["parts"] = [{name: getattr(p, name) for name in p.__slots__} for p in self.parts]
        return json.dumps(fields, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Marker:
        """Read what `to_json` wrote."""
        raw: dict[str, Any] = json.loads(data)
        if raw.get("v") != 1:
            raise ServiceError(
                f"marker of task {raw.get('task')} has version {raw.get('v')}, this release "
                "reads 1: upgrade airflow-slurm-provider"
            )
        parts = tuple(Part(**part) for part in raw["parts"])
        return cls(**{**raw, "parts": parts, "split": tuple(raw.get("split", ()))})

    def check(self, where: Slice | None) -> None:
        """Refuse a marker that was not made from the items of its task.

        `where` is the task's slice, from its row; None where it has no row. Every release has
        written `input_sha256`, so a marker without it is refused too.

        Raises:
            ForeignMarker: naming the marker.
        """
        if where is None:
            found = "which has no row in the table"
        elif self.input_sha256 != where.sha256:
            found = f"and was made from other items (digest {self.input_sha256[:12] or 'none'}, "
            found += f"planned {where.sha256[:12]})"
        elif not self.split and self.items != where.count:
            found = f"and holds {self.items:,} items of {where.count:,}"
        else:
            return
        raise ForeignMarker(
            f"job_id: done/{self.task}.done is the marker of task {self.task} of {self.job!r}, "
            f"{found}; an earlier job of this name may have left it: run this one under another "
            "job_id, or delete the marker and run the task again"
        )


class JobStore:
    """The objects of one job."""

    def __init__(self, objects: ObjectStore, paths: JobPaths) -> None:
        self.objects = objects
        self.paths = paths

    def segments(self, round_no: int, draft: int) -> Iterator[str]:
        """The keys of a draft's segments, in order; a list request per thousand."""
        for key in self.objects.list(self.paths.segments_of(round_no, draft)):
            if self.paths.draft_in(key) == draft:
                yield key

    def planned_slices(self, round_no: int, draft: int) -> Iterator[Slice]:
        """A draft's slices in the order of its tasks, up to the first segment that is missing.

        One GET per segment.

        Raises:
            UserError: if a segment is damaged.
        """
        found = self.segments(round_no, draft)
        with closing(prefetch(self.objects.get, found, window=2)) as segments:
            for place, (key, data) in enumerate(segments):
                number = keys.segment_number(draft, place)
                if data is None or key != self.paths.segment(round_no, number):
                    return
                with intact(key):
                    yield from slices_of(number, data)

    def read_slice(self, round_no: int, where: Slice) -> TaskItems:
        """The task's items; one ranged GET.

        Raises:
            UserError: if the bytes are not those that were planned.
        """
        key = self.paths.segment(round_no, where.segment)
        which = f"{key}: bytes {where.offset}+{where.length}"
        again = "plan the input again under another job_id"
        data = self.objects.get(key, start=where.offset, length=where.length)
        if data is None or hashlib.sha256(data).hexdigest() != where.sha256:
            found = "missing" if data is None else "not those that were planned"
            raise UserError(f"{which} are {found}; {again}")
        try:
            items = TaskItems(data, where.first, where.count)
        except RecursionError as error:
            raise UserError(
                f"{which} hold an item that is nested too deep to be read; plan the input again, "
                "with flatter items, under another job_id"
            ) from error
        if len(items) != where.count or len(set(items.keys)) != where.count:
            raise UserError(
                f"{which} hold other items than the {where.count} that were planned; {again}"
            )
        return items

    def marker(self, task: TaskId) -> Marker | None:
        """The task's marker, if it is committed."""
        data = self.objects.get(self.paths.done(task))
        return None if data is None else Marker.from_json(data)

    def commit(self, marker: Marker) -> Marker:
        """Create the task's marker and return the one that counts: ours, or the winner's.

        A refusal may be our own first try whose reply was lost, so the marker is read, never
        guessed.
        """
        if self.objects.put_new(self.paths.done(marker.task), marker.to_json()):
            return marker
        if (standing := self.marker(marker.task)) is not None:
            return standing
        raise ServiceError(f"{self.paths.done(marker.task)} exists and can't be read; try again")

    def propose(self, marker: Marker) -> None:
        """Write a marker where it decides nothing: for stores without conditional PUT."""
        self.objects.put(self.paths.proposed(marker.task, marker.attempt), marker.to_json())

    def publish(self, task: TaskId, attempt: int, where: Slice) -> Marker:
        """Publish the proposed marker that the table has chosen.

        Every caller writes the same bytes, so it may be done twice.

        Raises:
            ForeignMarker: if the proposed marker is not of the task's slice.
        """
        key = self.paths.proposed(task, attempt)
        if (data := self.objects.get(key)) is None:
            raise ServiceError(f"{key} can't be read; try again")
        marker = Marker.from_json(data)
        marker.check(where)
        self.objects.put(self.paths.done(task), data)
        return marker

    def upload_part(self, key: str, data: bytes, kind: str, rows: int) -> Part:
        """Upload a part and return its entry for the marker."""
        self.objects.put(key, data)
        return Part(kind, key, len(data), hashlib.sha256(data).hexdigest(), rows)

    def read_part(self, part: Part) -> bytes:
        """A committed part's bytes, verified.

        Raises:
            UserError: if they are missing or not those that were committed.
        """
        data = self.objects.get(part.key)
        if data is None:
            raise UserError(f"{part.key}: the committed part is missing from the bucket")
        if len(data) != part.size or hashlib.sha256(data).hexdigest() != part.sha256:
            raise UserError(
                f"{part.key}: {len(data)} bytes do not match the {part.size} bytes committed "
                "(sha256 differs); restore the object or run the task again"
            )
        return data

    def markers(self, round_no: int | None = None) -> Iterator[Marker]:
        """Every marker of the job, or of a round, in order of task id.

        One GET each, several at a time.
        """
        of_round = "" if round_no is None else f"{round_no:03}-"
        found = self.objects.list(f"{self.paths.done_folder}{of_round}")
        with closing(prefetch(self.objects.get, found)) as markers:
            for key, data in markers:
                if data is None:
                    raise ServiceError(f"{key} was listed and can't be read; try again")
                yield Marker.from_json(data)


def probe_conditional_put(objects: ObjectStore, key: str) -> bool:
    """Whether the store refuses to create an object twice; one request, or two.

    Some stores ignore ``If-None-Match``, and then the table decides between markers: three
    requests. The object stays: where it exists, the first request is refused and gives the
    answer. If somebody deletes it between two requests, the third one gives the answer.
    """
    return not all(objects.put_new(key, b"") for _ in range(3))


def probe_replacing(objects: ObjectStore, paths: JobPaths) -> float | None:
    """The store's time, if it respects both conditions of a PUT; None if not.

    Such a store lets exactly one of several processes replace an object. Six requests.
    """
    key = paths.probe(uuid.uuid4().hex)
    objects.put_new(key, b"1")
    found = objects.read(key)
    refused = not objects.put_new(key, b"2") and not objects.put_if(key, b"2", '"other"')
    kept = found is not None and refused and objects.put_if(key, b"2", found.tag)
    objects.delete(key)
    return found.modified if found is not None and kept else None

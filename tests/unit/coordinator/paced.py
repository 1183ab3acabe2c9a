"""Processes that share a bucket, stopped before any of their requests and continued.

`Bucket` holds the objects, with a clock that the test moves. Each `Process` runs in a thread of its
own and speaks to the bucket by a `Paced` store: `run_to` lets it make so many requests that
concern datasets, and it then stands still for as long as the test likes.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.ports import ObjectInfo, ObjectStore, StoredObject
from slurm_worker.testing import MemoryObjects

_T = TypeVar("_T")
#: Longer than any request in memory takes, for a test that would hang.
_DEADLINE_S = 60.0
DAY_S = 24 * 3600.0


class BrokenPromise(AssertionError):
    """A file that is promised is not there, or not as the manifest says."""


@dataclass(frozen=True)
class Publication:
    """A version that was seen in the manifest, and when it appeared there."""

    at: float
    manifest: dict[str, Any]

    @property
    def files(self) -> list[dict[str, Any]]:
        return [*self.manifest["files"], *self.manifest["errors"]]


@dataclass
class Bucket:
    """Objects, their clock, and what readers were promised.

    Args:
        paths: the job's.
        grace_s: seconds after which a version that was replaced may go.
    """

    paths: JobPaths
    grace_s: float
    objects: MemoryObjects = field(default_factory=MemoryObjects)
    now: float = 1_700_000_000.0
    published: list[Publication] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def copy(self) -> Bucket:
        objects = MemoryObjects()
        objects.objects = dict(self.objects.objects)
        objects.modified = dict(self.objects.modified)
        return Bucket(self.paths, self.grace_s, objects, self.now, list(self.published))

    def wrote(self, key: str) -> None:
        self.objects.modified[key] = self.now
        if key == self.paths.manifest:
            manifest = json.loads(self.objects.objects[key])
            if not self.published or self.published[-1].manifest["folder"] != manifest["folder"]:
                self.published.append(Publication(self.now, manifest))

    def check(self) -> None:
        """Note each promise that is broken now."""
        for place, each in enumerate(self.published):
            last = len(self.published) - 1
            if place < last - 1 and self.now - self.published[place + 1].at >= self.grace_s:
                continue
            for file in each.files:
                body = self.objects.objects.get(file["key"])
                if body is None or hashlib.sha256(body).hexdigest() != file["sha256"]:
                    self.broken.append(f"version {place + 1} of {last + 1}: {file['key']}")

    def unnamed(self) -> set[str]:
        """What lies in the datasets' folders, and neither of the last two versions names."""
        named = {file["key"] for publication in self.published[-2:] for file in publication.files}
        found = {
            key
            for key in self.objects.objects
            if key.startswith((self.paths.dataset, self.paths.errors))
        }
        return found - named - {self.paths.manifest}


class Paced:
    """`ports.ObjectStore` of one process: counts its requests, and stops before one."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._turn = threading.Condition()
        self._limit = 0
        self.made = 0
        self.waits = False

    def allow(self, limit: int) -> None:
        with self._turn:
            self._limit = limit
            self.waits = False
            self._turn.notify_all()

    def _ask(self, key: str, act: Callable[[ObjectStore], _T], *, writes: str = "") -> _T:
        bucket = self._bucket
        if key.startswith((bucket.paths.dataset, bucket.paths.errors)):
            with self._turn:
                while self.made >= self._limit:
                    self.waits = True
                    self._turn.notify_all()
                    self._turn.wait()
                self.made += 1
        result = act(bucket.objects)
        if writes and result is not False:
            bucket.wrote(writes)
        if writes or key.startswith((bucket.paths.dataset, bucket.paths.errors)):
            bucket.check()
        return result

    def verify(self) -> None:
        """See `ports.ObjectStore`, as all below."""

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        return self._ask(key, lambda store: store.get(key, start=start, length=length))

    def read(self, key: str) -> StoredObject | None:
        return self._ask(key, lambda store: store.read(key))

    def put(self, key: str, body: bytes) -> None:
        self._ask(key, lambda store: store.put(key, body), writes=key)

    def put_new(self, key: str, body: bytes) -> bool:
        return self._ask(key, lambda store: store.put_new(key, body), writes=key)

    def put_if(self, key: str, body: bytes, tag: str) -> bool:
        return self._ask(key, lambda store: store.put_if(key, body, tag), writes=key)

    def list(self, prefix: str) -> Iterator[str]:
        yield from self._ask(prefix, lambda store: list(store.list(prefix)))

    def entries(self, prefix: str) -> Iterator[ObjectInfo]:
        yield from self._ask(prefix, lambda store: list(store.entries(prefix)))

    def delete(self, key: str) -> None:
        self._ask(key, lambda store: store.delete(key))

    def delete_many(self, keys: Iterable[str]) -> None:
        chosen = list(keys)
        if chosen:
            self._ask(chosen[0], lambda store: store.delete_many(chosen))

    def size(self, key: str) -> int | None:
        return self._ask(key, lambda store: store.size(key))

    def upload(self, key: str, path: str) -> None:
        body = Path(path).read_bytes()
        self._ask(key, lambda store: store.put(key, body), writes=key)

    def download(self, key: str, path: str) -> None:
        self._ask(key, lambda store: store.download(key, path))

    def copy(self, source: str, key: str) -> None:
        self._ask(key, lambda store: store.copy(source, key), writes=key)


class Process:
    """Something that runs in a thread over a paced store.

    Args:
        bucket: what it shares with others.
        act: what it does.
    """

    def __init__(self, bucket: Bucket, act: Callable[[ObjectStore], Any]) -> None:
        self.store = Paced(bucket)
        self.error: BaseException | None = None
        self.result: Any = None
        self._act = act
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def run_to(self, requests: int) -> bool:
        """Continue it until it has made so many requests; return whether it has ended."""
        self.store.allow(requests)
        turn = self.store._turn
        with turn:
            assert turn.wait_for(lambda: self.store.waits or self.ended, _DEADLINE_S), "it hangs"
        return self.ended

    def finish(self) -> None:
        self.run_to(1_000_000)
        self._thread.join(_DEADLINE_S)

    ended = False

    def _run(self) -> None:
        try:
            self.result = self._act(self.store)
        except BaseException as error:
            self.error = error
        with self.store._turn:
            self.ended = True
            self.store._turn.notify_all()

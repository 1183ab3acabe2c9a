"""The bucket: what is written and deleted, and a process's view of it over a network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from slurm_worker.protocol.ports import (
    ObjectInfo,
    StoredObject,
)
from slurm_worker.testing import MemoryObjects
from tests.simulator.engine.seen import Seen
from tests.simulator.stores.network import Conflict, Network

T = TypeVar("T")
V = TypeVar("V")
_MANIFEST = "/dataset/_manifest.json"


class WatchedObjects(MemoryObjects):
    """The bucket; each write and each deletion is reported."""

    def __init__(self) -> None:
        super().__init__()
        #: Called with the key and the body of each object that was written.
        self.on_put: Callable[[str, bytes], None] = lambda _key, _body: None
        #: Called with the key of each object that was deleted.
        self.on_delete: Callable[[str], None] = lambda _key: None

    def put(self, key: str, body: bytes) -> None:
        """See `ports.ObjectStore.put`."""
        super().put(key, body)
        self.on_put(key, body)

    def put_new(self, key: str, body: bytes) -> bool:
        """See `ports.ObjectStore.put_new`."""
        created = super().put_new(key, body)
        if created:
            self.on_put(key, body)
        return created

    def put_if(self, key: str, body: bytes, tag: str) -> bool:
        """See `ports.ObjectStore.put_if`."""
        replaced = super().put_if(key, body, tag)
        if replaced:
            self.on_put(key, body)
        return replaced

    def delete(self, key: str) -> None:
        """See `ports.ObjectStore.delete`."""
        super().delete(key)
        self.on_delete(key)


class SimObjects:
    """`ports.ObjectStore` over a network.

    Args:
        store: the objects.
        network: the connection to them.
        seen: records the markers.
        conditional_put: whether the store heeds ``If-None-Match``.
        conditional_replace: whether it heeds ``If-Match``.
    """

    def __init__(
        self,
        store: MemoryObjects,
        network: Network,
        seen: Seen,
        *,
        conditional_put: bool = True,
        conditional_replace: bool = True,
    ) -> None:
        self._store = store
        self._conditional_replace = conditional_replace
        self._network = network
        self._seen = seen
        self._conditional_put = conditional_put

    def verify(self) -> None:
        """See `ports.ObjectStore.verify`."""
        self._call("head", self._store.verify)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        """See `ports.ObjectStore.get`."""
        return self._call("get", lambda: self._store.get(key, start=start, length=length))

    def put(self, key: str, body: bytes) -> None:
        """See `ports.ObjectStore.put`."""

        def apply() -> None:
            self._store.put(key, body)
            self._record(key, body)

        self._change("put", [key], apply)

    def put_new(self, key: str, body: bytes) -> bool:
        """See `ports.ObjectStore.put_new`."""
        if not self._conditional_put:
            # Such a store ignores the header.
            self.put(key, body)
            return True

        def apply() -> bool:
            created = self._store.put_new(key, body)
            if created:
                self._record(key, body)
            return created

        return self._put_where(key, apply)

    def read(self, key: str) -> StoredObject | None:
        """See `ports.ObjectStore.read`."""
        return self._call("get", lambda: self._store.read(key))

    def put_if(self, key: str, body: bytes, tag: str) -> bool:
        """See `ports.ObjectStore.put_if`."""
        if not self._conditional_replace:
            self.put(key, body)
            return True

        def apply() -> bool:
            replaced = self._store.put_if(key, body, tag)
            if replaced:
                self._record(key, body)
            return replaced

        return self._put_where(key, apply)

    def list(self, prefix: str) -> Iterator[str]:
        """See `ports.ObjectStore.list`."""
        yield from self._call("list", lambda: [entry.key for entry in self._listed(prefix)])

    def entries(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ports.ObjectStore.entries`."""
        yield from self._call("list", lambda: self._listed(prefix))

    def delete(self, key: str) -> None:
        """See `ports.ObjectStore.delete`."""
        self._change("delete", [key], lambda: self._store.delete(key))

    def delete_many(self, keys: Iterable[str]) -> None:
        """See `ports.ObjectStore.delete_many`."""
        chosen = list(keys)
        self._change("delete", chosen, lambda: self._store.delete_many(chosen))

    def size(self, key: str) -> int | None:
        """See `ports.ObjectStore.size`."""
        return self._call("head", lambda: self._store.size(key))

    def upload(self, key: str, path: str) -> None:
        """See `ports.ObjectStore.upload`."""
        # What arrives late is what was sent: the file may be gone by then.
        body = Path(path).read_bytes()
        self._change("put", [key], lambda: self._store.put(key, body))

    def download(self, key: str, path: str) -> None:
        """See `ports.ObjectStore.download`."""
        self._call("get", lambda: self._store.download(key, path))

    def copy(self, source: str, key: str) -> None:
        """See `ports.ObjectStore.copy`."""
        self._change("put", [key], lambda: self._store.copy(source, key))

    def _put_where(self, key: str, apply: Callable[[], bool]) -> bool:
        """A PUT with a condition; it may collide with another one of its key."""

        def unless_conflict() -> bool:
            several = self._seen.writing[key] > 1
            if several and self._network.chance(self._network.rates.conflict, "conflict"):
                raise Conflict
            return apply()

        self._network.before_put(key)
        self._seen.writing[key] += 1
        try:
            return self._change("put", [key], unless_conflict, late=apply)
        finally:
            self._seen.writing[key] -= 1

    def _listed(self, prefix: str) -> Sequence[ObjectInfo]:
        past = self._network.past(
            self._seen.objects, self._network.stale_list_s, "stale list", prefix
        )
        current = self._store.entries(prefix)
        if not past:
            return [*current]
        found = {entry.key: entry for entry in current} | past
        return [entry for _, entry in sorted(found.items()) if entry is not None]

    def _change(
        self,
        verb: str,
        keys: Sequence[str],
        apply: Callable[[], T],
        late: Callable[[], object] | None = None,
    ) -> T:
        def noted(change: Callable[[], V]) -> V:
            before = {key: self._info(key) for key in keys}
            result = change()
            for key, info in before.items():
                self._seen.objects.note(self._network.now, key, info)
            return result

        name, where = f"object {verb}", f"store {verb}"
        return self._network.call(name, lambda: noted(apply), where, lambda: noted(late or apply))

    def _info(self, key: str) -> ObjectInfo | None:
        body = self._store.objects.get(key)
        return (
            None if body is None else ObjectInfo(key, len(body), self._store.modified.get(key, 0.0))
        )

    def _call(self, verb: str, apply: Callable[[], T]) -> T:
        return self._network.call(f"object {verb}", apply, f"store {verb}")

    def _record(self, key: str, body: bytes) -> None:
        self._seen.write(self._network.host, f"put {key}")
        if key.endswith(_MANIFEST):
            self._seen.manifest(body)
        if key.endswith(".done"):
            self._seen.committed.setdefault(key, self._network.now)
            digest = hashlib.sha256(body).hexdigest()
            self._seen.markers.setdefault(key, set()).add(digest)

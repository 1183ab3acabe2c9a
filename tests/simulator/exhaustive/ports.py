"""The services as a process sees them: each call is a `Request`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from airflow_slurm_provider.slurm.accounting import JobRecord
from airflow_slurm_provider.slurm.array_state import ArrayKey, ArrayState
from slurm_worker.errors import Missing
from slurm_worker.protocol.ports import (
    Applied,
    ObjectInfo,
    Refused,
    Row,
    Statement,
    StoredObject,
)
from tests.simulator.exhaustive.process import Process, Request

_MAX_ARRAY_SIZE = 1001
#: The place of a line's order in the sort key of an audit event.
_ORDER = re.compile(r"(?<=#)[0-9a-f]{4}")


class Table:
    """`ports.Rows` of a process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def get(self, pk: str, sk: str, *, consistent: bool = True) -> Row | None:
        """See `ports.Rows.get`."""
        found: Row | None = self._ask("get", pk, sk)
        return found

    def put_new(self, row: Row) -> Applied | Refused:
        """See `ports.Rows.put_new`."""
        if "#EVENT#" in str(row["pk"]):
            # The order of all events of this Python process would depend on earlier schedules.
            row = {**row, "sk": _ORDER.sub("0000", str(row["sk"]), count=1)}
        found: Applied | Refused = self._ask("put_new", row, writes=True)
        return found

    def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
        """See `ports.Rows.update`."""
        found: Applied | Refused = self._ask("update", pk, sk, statement, writes=True)
        return found

    def query(
        self,
        pk: str,
        *,
        after: str = "",
        limit: int | None = None,
        consistent: bool = False,
        backwards: bool = False,
    ) -> Iterator[Row]:
        """See `ports.Rows.query`."""
        yield from self._ask("query", pk, after, limit, backwards)

    def delete(self, pk: str, sk: str) -> None:
        """See `ports.Rows.delete`."""
        self._ask("delete", pk, sk, writes=True)

    def _ask(self, verb: str, *arguments: object, writes: bool = False) -> Any:
        return self._process.ask(Request("table", verb, arguments, writes))


class Store:
    """`ports.ObjectStore` of a process; without `conditional`, a store that ignores conditions."""

    def __init__(self, process: Process, *, conditional: bool = True) -> None:
        self._process = process
        self._conditional = conditional

    def verify(self) -> None:
        """See `ports.ObjectStore.verify`."""

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        """See `ports.ObjectStore.get`."""
        found: bytes | None = self._ask("get", key, start, length)
        return found

    def put(self, key: str, body: bytes) -> None:
        """See `ports.ObjectStore.put`."""
        self._ask("put", key, bytes(body), writes=True)

    def put_new(self, key: str, body: bytes) -> bool:
        """See `ports.ObjectStore.put_new`."""
        if not self._conditional:
            self.put(key, body)
            return True
        found: bool = self._ask("put_new", key, bytes(body), writes=True)
        return found

    def read(self, key: str) -> StoredObject | None:
        """See `ports.ObjectStore.read`."""
        found: StoredObject | None = self._ask("read", key)
        return found

    def put_if(self, key: str, body: bytes, tag: str) -> bool:
        """See `ports.ObjectStore.put_if`."""
        if not self._conditional:
            self.put(key, body)
            return True
        found: bool = self._ask("put_if", key, bytes(body), tag, writes=True)
        return found

    def list(self, prefix: str) -> Iterator[str]:
        """See `ports.ObjectStore.list`."""
        yield from self._ask("list", prefix)

    def entries(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ports.ObjectStore.entries`."""
        yield from self._ask("entries", prefix)

    def delete(self, key: str) -> None:
        """See `ports.ObjectStore.delete`."""
        self._ask("delete", key, writes=True)

    def delete_many(self, keys: Iterable[str]) -> None:
        """See `ports.ObjectStore.delete_many`."""
        self._ask("delete_many", tuple(keys), writes=True)

    def size(self, key: str) -> int | None:
        """See `ports.ObjectStore.size`."""
        found: int | None = self._ask("size", key)
        return found

    def upload(self, key: str, path: str) -> None:
        """See `ports.ObjectStore.upload`."""
        self.put(key, Path(path).read_bytes())

    def download(self, key: str, path: str) -> None:
        """See `ports.ObjectStore.download`."""
        Path(path).write_bytes(self._existing(key))

    def copy(self, source: str, key: str) -> None:
        """See `ports.ObjectStore.copy`."""
        self.put(key, self._existing(source))

    def _existing(self, key: str) -> bytes:
        body = self.get(key)
        if body is None:
            raise Missing(f"{key}: there is no such object")
        return body

    def _ask(self, verb: str, *arguments: object, writes: bool = False) -> Any:
        return self._process.ask(Request("store", verb, arguments, writes))


class Slurm:
    """The Slurm client of a process, as far as the commands use it: each method is one step.

    What happens within a method, on the login node, is tried by the sampled simulation and by
    ``make submit-faults``. An array's workers can start at once. A cancelled one is gone at once.
    """

    def __init__(self, process: Process) -> None:
        self._process = process

    def version(self) -> str:
        """See `SlurmClient.version`."""
        return "slurm 22.05.8"

    def max_array_size(self) -> int:
        """See `SlurmClient.max_array_size`."""
        return _MAX_ARRAY_SIZE

    def submit(self, name: str, script: str, folder: str) -> str:
        """See `SlurmClient.submit`."""
        found: str = self._ask("submit", name, script, writes=True)
        return found

    def withdraw(self, names: Collection[str], folder: str) -> dict[str, str]:
        """See `SlurmClient.withdraw`."""
        found: dict[str, str] = self._ask("withdraw", tuple(sorted(names)), writes=True)
        return found

    def find(self, names: Collection[str]) -> dict[str, str]:
        """See `SlurmClient.find`."""
        found: dict[str, str] = self._ask("find", tuple(sorted(names)))
        return found

    def cancel(self, arrays: Collection[ArrayKey]) -> list[ArrayKey]:
        """See `SlurmClient.cancel`."""
        names = tuple(sorted({array.name for array in arrays}))
        return [ArrayKey(*key) for key in self._ask("cancel", names, writes=True)]

    def together(self, arrays: Sequence[ArrayKey]) -> ArrayState:
        """See `SlurmClient.together`."""
        ids = tuple(sorted({array.slurm_job_id for array in arrays}))
        found: ArrayState = self._ask("together", ids)
        return found

    def records(self, arrays: Collection[ArrayKey]) -> list[JobRecord]:
        """See `SlurmClient.records`: a cluster without accounting."""
        return []

    def names(self, slurm_job_ids: Collection[str], prefix: str) -> dict[str, str]:
        """See `SlurmClient.names`: no log is there that names an array."""
        return {}

    def close(self) -> None:
        """See `SlurmClient.close`."""

    def _ask(self, verb: str, *arguments: object, writes: bool = False) -> Any:
        return self._process.ask(Request("slurm", verb, arguments, writes))

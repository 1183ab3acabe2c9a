"""What a handler gets beside the item."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm_worker.errors import AccessDenied, ErrorClass, ItemError, Missing
from slurm_worker.execution.throttle import TokenThrottle
from slurm_worker.protocol.keys import split_s3_uri
from slurm_worker.protocol.ports import Logger, ObjectStore


class Fetcher:
    """Copies S3 objects from `buckets` to a folder on node-local scratch, each once per worker."""

    def __init__(self, buckets: Callable[[str], ObjectStore], folder: Path) -> None:
        self.buckets = buckets
        self._folder = folder
        self._lock = threading.Lock()

    def fetch(self, uri: str) -> Path:
        """See `Context.fetch`."""
        bucket, key = split_s3_uri(uri)
        name = hashlib.sha256(uri.encode()).hexdigest()[:16]
        target = self._folder / f"{name}-{Path(key).name}"
        with self._lock:
            if not target.exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                partial = target.with_suffix(".partial")
                try:
                    self.buckets(bucket).download(key, str(partial))
                except Missing as error:
                    raise ItemError(ErrorClass.NOT_FOUND, str(error)) from error
                except AccessDenied as error:
                    raise ItemError(ErrorClass.AUTH, str(error)) from error
                partial.rename(target)
        return target


@dataclass(frozen=True, slots=True)
class HandlerResources:
    """The part of the context that is the same for all items of a worker; see `Context`."""

    job: str
    params: str  #: JSON text
    logger: Logger
    scratch: Path
    fetcher: Fetcher
    throttle: TokenThrottle
    state: Any = None


class Context:
    """What a handler gets beside the item."""

    __slots__ = ("_params", "_resources", "attempt", "key")

    def __init__(self, resources: HandlerResources, key: str = "", attempt: int = 0) -> None:
        self._resources = resources
        self.key = key  #: the item's key; empty in ``setup`` and ``teardown``
        self.attempt = attempt  #: the number of this attempt at the item's task
        self._params: dict[str, Any] | None = None

    @property
    def job(self) -> str:
        """The job's id."""
        return self._resources.job

    @property
    def params(self) -> dict[str, Any]:
        """The user's own settings (``handler.params``).

        Each call has its own copy: a handler's changes do not reach the next item.
        """
        if self._params is None:
            self._params = json.loads(self._resources.params)
        return self._params

    @property
    def state(self) -> Any:
        """What ``setup`` returned."""
        return self._resources.state

    @property
    def logger(self) -> Logger:
        """Writes JSON lines with all ids."""
        return self._resources.logger

    @property
    def scratch(self) -> Path:
        """A node-local folder of this worker."""
        return self._resources.scratch

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt, ``job/key``, for servers that accept such a key."""
        return f"{self._resources.job}/{self.key}"

    def fetch(self, uri: str) -> Path:
        """A node-local copy of ``s3://bucket/key``, made once per worker.

        Raises:
            ItemError: ``not_found`` if there is none, ``auth`` if it may not be read.
        """
        return self._resources.fetcher.fetch(uri)

    def objects(self, bucket: str) -> ObjectStore:
        """The objects of a bucket, for handlers that write files of their own.

        An item may run more than once: name such files by what is in them.
        """
        return self._resources.fetcher.buckets(bucket)

    def acquire(self, limit: str | None = None) -> None:
        """Wait for one more token (of every limit, or of one), before one more request."""
        self._resources.throttle.acquire(limit)

    async def acquire_async(self, limit: str | None = None) -> None:
        """As `acquire`, for ``async def`` handlers."""
        await self._resources.throttle.acquire_async(limit)

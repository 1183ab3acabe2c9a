"""Loading and calling the user's code.

A handler is ``module:function`` in the code that the job shipped (a zip named by its
digest) or in a module that is importable on the node. A function ``setup(context)`` in
the same module is called once per worker; what it returns is ``context.state``.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import logging
import sys
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from slurm_worker.config import HandlerConfig
from slurm_worker.errors import UserError
from slurm_worker.keys import JobPaths, split_s3_uri
from slurm_worker.ports import ObjectStore

Handle: TypeAlias = Callable[[dict[str, Any], "Context"], object]


class Fetcher:
    """Brings S3 objects to node-local scratch, each once per worker.

    Args:
        buckets: gives the store of a bucket.
        folder: where the files go.
    """

    def __init__(self, buckets: Callable[[str], ObjectStore], folder: Path) -> None:
        self._buckets = buckets
        self._folder = folder
        self._lock = threading.Lock()

    def fetch(self, uri: str) -> Path:
        """A local copy of ``s3://bucket/key``."""
        bucket, key = split_s3_uri(uri)
        name = hashlib.sha256(uri.encode()).hexdigest()[:16]
        target = self._folder / f"{name}-{Path(key).name}"
        with self._lock:
            if not target.exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                partial = target.with_suffix(".partial")
                self._buckets(bucket).download(key, str(partial))
                partial.rename(target)
        return target


@dataclass(frozen=True, slots=True)
class Context:
    """What a handler gets beside the item.

    Args:
        job: the job's id.
        key: the item's key.
        attempt: the task's attempt.
        params: the user's own settings (``handler.params``).
        state: what ``setup`` returned.
        logger: writes JSON lines with all ids.
        scratch: a node-local folder of this worker.
    """

    job: str
    params: Mapping[str, Any]
    logger: logging.Logger
    scratch: Path
    fetcher: Fetcher
    take_token: Callable[[str | None], None]
    key: str = ""
    attempt: int = 0
    state: Any = None

    @property
    def idempotency_key(self) -> str:
        """``job/key``: the same for every attempt, for servers that take such a key."""
        return f"{self.job}/{self.key}"

    def fetch(self, uri: str) -> Path:
        """A node-local copy of an S3 object, brought once per worker."""
        return self.fetcher.fetch(uri)

    def acquire(self, limit: str | None = None) -> None:
        """Wait for one more token (of every limit, or of one), before one more request."""
        self.take_token(limit)

    def for_item(self, key: str, attempt: int) -> Context:
        """The same context for one item."""
        return replace(self, key=key, attempt=attempt)


@dataclass(frozen=True, slots=True)
class Handler:
    """The user's functions, loaded."""

    handle: Handle
    setup: Callable[[Context], object] | None = field(default=None)


def load(config: HandlerConfig, objects: ObjectStore, paths: JobPaths, scratch: Path) -> Handler:
    """Bring the handler's code to the node and import it.

    Raises:
        UserError: if the code, the module or the function is not there.
    """
    if config.code_sha256:
        folder = _unpack(config.code_sha256, objects, paths, scratch)
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    module_name, _, function_name = config.entry.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"handler.entry: module {module_name!r} can't be imported on the node: {error}; ship "
            "it with handler.code or install it there"
        ) from error
    handle = getattr(module, function_name, None)
    if not callable(handle):
        raise UserError(
            f"handler.entry: module {module_name!r} has no function {function_name!r}; define it "
            "or correct the name"
        )
    return Handler(handle, getattr(module, "setup", None))


def _unpack(digest: str, objects: ObjectStore, paths: JobPaths, scratch: Path) -> Path:
    folder = scratch / f"code-{digest[:16]}"
    if folder.exists():
        return folder
    data = objects.get(paths.code(digest))
    if data is None or hashlib.sha256(data).hexdigest() != digest:
        raise UserError(
            f"handler.code: {paths.code(digest)} is {'missing' if data is None else 'damaged'}; "
            "submit the job again, which ships it anew"
        )
    partial = folder.with_suffix(".partial")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(partial)
    partial.rename(folder)
    return folder

"""Loading and calling the user's code.

A handler is ``module:function`` in the code that the job shipped (a zip named by its
digest) or in a module that is importable on the node, or an entry point of an installed
distribution. Functions ``setup(context)`` and ``teardown(context)`` in the same module are
called once per worker; what `setup` returns is ``context.state``.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from slurm_worker.decorators import BATCH_MARK
from slurm_worker.errors import Denied, ErrorClass, ItemError, Missing, UserError, describe
from slurm_worker.execution.signatures import (
    NotCallable,
    check_kind,
    handing,
    handing_alone,
    is_coroutine,
    takes_of,
)
from slurm_worker.protocol.job_config import HandlerConfig
from slurm_worker.protocol.keys import JobPaths, split_s3_uri
from slurm_worker.protocol.ports import ObjectStore

#: Installed distributions offer handlers under this group of entry points.
PLUGIN_GROUP = "slurm_worker.handlers"
#: What user code may raise; calling sys.exit() is a bug there, not a say.
RAISED = (Exception, SystemExit)
_PIP = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")


class Limiters(Protocol):
    """The job's rate limits, as a handler may use them."""

    def acquire(self, name: str | None) -> None:
        """Wait for a token of the limit `name`, or of each."""

    async def acquire_async(self, name: str | None) -> None:
        """The same in a coroutine."""


class Fetcher:
    """Brings S3 objects to node-local scratch, each once per worker.

    Args:
        buckets: gives the store of a bucket.
        folder: where the files go.
    """

    def __init__(self, buckets: Callable[[str], ObjectStore], folder: Path) -> None:
        self.buckets = buckets
        self._folder = folder
        self._lock = threading.Lock()

    def fetch(self, uri: str) -> Path:
        """A local copy of ``s3://bucket/key``.

        Raises:
            ItemError: if there is no such object, or it may not be read.
        """
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
                except Denied as error:
                    raise ItemError(ErrorClass.AUTH, str(error)) from error
                partial.rename(target)
        return target


@dataclass(frozen=True, slots=True)
class HandlerResources:
    """What all items of a worker have in common.

    Args:
        job: the job's id.
        params: the user's own settings (``handler.params``), as JSON text.
        logger: writes JSON lines with all ids.
        scratch: a node-local folder of this worker.
        fetcher: brings S3 objects.
        limiters: the job's rate limits.
        state: what ``setup`` returned.
    """

    job: str
    params: str
    logger: Any
    scratch: Path
    fetcher: Fetcher
    limiters: Limiters
    state: Any = None


class Context:
    """What a handler gets beside the item.

    Attributes:
        key: the item's key; empty in ``setup`` and ``teardown``.
        attempt: the number of this attempt at the item's task.
    """

    __slots__ = ("_params", "_shared", "attempt", "key")
    _params: dict[str, Any]

    def __init__(self, shared: HandlerResources, key: str = "", attempt: int = 0) -> None:
        self._shared = shared
        self.key = key
        self.attempt = attempt

    @property
    def job(self) -> str:
        """The job's id."""
        return self._shared.job

    @property
    def params(self) -> dict[str, Any]:
        """The user's own settings (``handler.params``).

        Each call has a copy: what a handler changes here, the next item does not see.
        """
        try:
            return self._params
        except AttributeError:
            self._params = json.loads(self._shared.params)
            return self._params

    @property
    def state(self) -> Any:
        """What ``setup`` returned."""
        return self._shared.state

    @property
    def logger(self) -> Any:
        """Writes JSON lines with all ids."""
        return self._shared.logger

    @property
    def scratch(self) -> Path:
        """A node-local folder of this worker."""
        return self._shared.scratch

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt, ``job/key``, for servers that take such a key."""
        return f"{self._shared.job}/{self.key}"

    def fetch(self, uri: str) -> Path:
        """A node-local copy of an S3 object, brought once per worker.

        Raises:
            ItemError: ``not_found`` if there is none, ``auth`` if it may not be read.
        """
        return self._shared.fetcher.fetch(uri)

    def objects(self, bucket: str) -> ObjectStore:
        """The objects of a bucket, for handlers that write files of their own.

        An item may run more than once: give such files names that say what is in them.
        """
        return self._shared.fetcher.buckets(bucket)

    def acquire(self, limit: str | None = None) -> None:
        """Wait for one more token (of every limit, or of one), before one more request."""
        self._shared.limiters.acquire(limit)

    async def acquire_async(self, limit: str | None = None) -> None:
        """As `acquire`, for ``async def`` handlers."""
        await self._shared.limiters.acquire_async(limit)


class HandlerKind(Enum):
    """How a handler wants to be called."""

    ITEM = "item"  #: ``handle(item, context)``
    ASYNC = "async"  #: ``async def handle(item, context)``
    BATCH = "batch"  #: ``@batch(size)``: ``handle(items, context)``, one result per item


@dataclass(frozen=True, slots=True)
class Handler:
    """The user's functions, loaded.

    Args:
        handle: called for each item, or for each batch.
        kind: how.
        batch_size: items of a call, at the most.
        setup: called once per worker, before the first item.
        teardown: called once per worker, after the last one.
        folder: where the user's code is; empty where nobody knows.
    """

    handle: Callable[..., Any]
    kind: HandlerKind = HandlerKind.ITEM
    batch_size: int = 1
    setup: Callable[[Context], object] | None = None
    teardown: Callable[[Context], object] | None = None
    folder: str = ""


def load(config: HandlerConfig, objects: ObjectStore, paths: JobPaths, scratch: Path) -> Handler:
    """Bring the handler's code to the node and import it.

    Raises:
        UserError: if the code, the module or the function is not there, or can't be called.
    """
    folder = None
    if config.code_sha256:
        folder = _unpack(config.code_sha256, objects, paths, scratch)
        if config.requirements:
            _put_first(_install(folder / config.requirements, scratch / "requirements"))
        _put_first(folder)
    module, handle = _plugin(config.plugin) if config.plugin else _function(config.entry)
    size = getattr(handle, BATCH_MARK, 0)
    asynchronous = is_coroutine(handle)
    if size and asynchronous:
        raise UserError("handler: a batch handler can't be async; make it a plain function")
    return Handler(
        _called_with_context(handle, config),
        HandlerKind.BATCH if size else HandlerKind.ASYNC if asynchronous else HandlerKind.ITEM,
        size or 1,
        _around(module, "setup"),
        _around(module, "teardown"),
        str(folder) if folder else _folder_of(module),
    )


def set_up(handler: Handler, shared: HandlerResources) -> HandlerResources:
    """Call the handler's ``setup``; what all items share, with what it returned.

    Raises:
        UserError: if it fails.
    """
    if handler.setup is None:
        return shared
    try:
        return replace(shared, state=handler.setup(Context(shared)))
    except UserError:
        raise
    except RAISED as error:
        shared.logger.error("setup failed", exc_info=error)
        raise UserError(
            f"handler: setup() failed: {describe(error)}; the worker's log has the traceback"
        ) from error


def tear_down(handler: Handler, shared: HandlerResources) -> None:
    """Call the handler's ``teardown``, whose failure loses nothing."""
    if handler.teardown is None:
        return
    try:
        handler.teardown(Context(shared))
    except RAISED as error:
        shared.logger.error("teardown failed", error=describe(error), exc_info=error)


def _called_with_context(handle: Callable[..., Any], config: HandlerConfig) -> Callable[..., Any]:
    try:
        check_kind(handle)
        return handing(handle, takes_of(handle))
    except NotCallable as error:
        name = f"plugin: {config.plugin!r}" if config.plugin else f"entry: {config.entry!r}"
        raise UserError(f"handler.{name} {error}") from error


def _around(module: ModuleType, name: str) -> Callable[[Context], object] | None:
    """The module's ``setup`` or ``teardown``, by the same rule as a handler, without an item."""
    function = getattr(module, name, None)
    if function is None:
        return None
    try:
        if not isinstance(function, type):  # a class will do: its instance is the state
            check_kind(function)
        if is_coroutine(function):
            raise NotCallable("is a coroutine function; make it a plain function")
        return handing_alone(function)
    except NotCallable as error:
        raise UserError(f"handler: {name} of module {module.__name__!r} {error}") from error


def _folder_of(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    return str(Path(file).parent) if file else ""


def _function(entry: str) -> tuple[ModuleType, Callable[..., Any]]:
    module_name, _, function_name = entry.partition(":")
    try:
        module = importlib.import_module(module_name)
    except RAISED as error:
        missing = isinstance(error, ImportError)
        mend = "ship it with handler.code or install it there" if missing else "mend the module"
        raise UserError(
            f"handler.entry: module {module_name!r} can't be imported on the node: "
            f"{describe(error)}; {mend}"
        ) from error
    handle = getattr(module, function_name, None)
    if handle is None:
        raise UserError(
            f"handler.entry: module {module_name!r} has no function {function_name!r}; define it "
            "or correct the name"
        )
    return module, handle


def _plugin(name: str) -> tuple[ModuleType, Callable[..., Any]]:
    found = [each for each in entry_points(group=PLUGIN_GROUP) if each.name == name]
    if not found:
        raise UserError(
            f"handler.plugin: {name!r} is not installed on the node; install the distribution "
            f"that has it as an entry point of {PLUGIN_GROUP!r}, or name another"
        )
    try:
        return importlib.import_module(found[0].module), found[0].load()
    except RAISED as error:
        raise UserError(
            f"handler.plugin: {name!r} ({found[0].value}) can't be loaded on the node: "
            f"{describe(error)}; correct the distribution that has it"
        ) from error


def _put_first(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _install(requirements: Path, target: Path) -> Path:
    """Install the handler's requirements into a folder of this worker."""
    if target.exists():
        return target
    if not requirements.exists():
        raise UserError(
            f"handler.requirements: {requirements.name!r} is not in the shipped code; correct "
            "the name, relative to handler.code"
        )
    ended = subprocess.run(
        [*_PIP, "--target", str(target.absolute()), "--requirement", str(requirements.absolute())],
        capture_output=True,
        text=True,
        check=False,
        # With -m the current folder is where Python looks for pip first.
        cwd=target.parent,
    )
    if ended.returncode:
        last = (ended.stderr.strip() or ended.stdout.strip() or "no output").splitlines()[-1]
        raise UserError(
            f"handler.requirements: pip can't install {requirements.name!r} on the node: {last}"
        )
    return target


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

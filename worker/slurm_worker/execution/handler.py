"""Loading and calling the user's code.

A handler is ``module:function`` in the code that the job shipped (a zip named by its digest) or
in a module that is importable on the node. Or it is an entry point of an installed distribution.
The job's requirements are installed on the node. Functions ``setup(context)`` and
``teardown(context)`` in the same module are called once per worker; what `setup` returns is
``context.state``.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from slurm_worker.decorators import BATCH_MARK
from slurm_worker.errors import ServiceError, UserError, describe
from slurm_worker.execution import signatures
from slurm_worker.execution.context import Context, HandlerResources
from slurm_worker.execution.signatures import NotCallable, check_kind, is_coroutine
from slurm_worker.protocol.job_config import HandlerConfig
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.ports import ObjectStore

#: Installed distributions offer handlers under this group of entry points.
PLUGIN_GROUP = "slurm_worker.handlers"
#: What user code may raise; sys.exit() is a bug there: a handler does not end its worker.
RAISED = (Exception, SystemExit)
_PIP = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")


class HandlerKind(Enum):
    """How a handler is called."""

    ITEM = "item"  #: ``handle(item, context)``
    ASYNC = "async"  #: ``async def handle(item, context)``
    BATCH = "batch"  #: ``@batch(size)``: ``handle(items, context)``, one result per item


@dataclass(frozen=True, slots=True)
class Handler:
    """The user's functions, loaded; `folder` has their code, and is empty if it is not known."""

    handle: Callable[..., Any]
    kind: HandlerKind = HandlerKind.ITEM
    batch_size: int = 1
    setup: Callable[[Context], object] | None = None
    teardown: Callable[[Context], object] | None = None
    folder: str = ""


def load(config: HandlerConfig, objects: ObjectStore, paths: JobPaths, scratch: Path) -> Handler:
    """Copy the handler's code to the node and import it.

    Raises:
        UserError: if the code is missing or damaged, its requirements can't be installed, or the
            module or the function is not there or can't be called.
        ServiceError: if the node's scratch can't hold the code.
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
    try:
        check_kind(handle)
        how = signatures.context_passing_of(handle)
        handle = signatures.accepting_context(handle, how)
    except NotCallable as error:
        name = f"plugin: {config.plugin!r}" if config.plugin else f"entry: {config.entry!r}"
        raise UserError(f"handler.{name} {error}") from error
    if folder is None and (file := getattr(module, "__file__", None)):
        folder = Path(file).parent
    return Handler(
        handle,
        HandlerKind.BATCH if size else HandlerKind.ASYNC if asynchronous else HandlerKind.ITEM,
        size or 1,
        _around(module, "setup"),
        _around(module, "teardown"),
        str(folder or ""),
    )


def set_up(handler: Handler, resources: HandlerResources) -> HandlerResources:
    """Call the handler's ``setup``: what it returned is ``state``. A UserError if it fails."""
    if handler.setup is None:
        return resources
    try:
        return replace(resources, state=handler.setup(Context(resources)))
    except UserError:
        raise
    except RAISED as error:
        resources.logger.error("setup failed", exc_info=error)
        raise UserError(
            f"handler: setup() failed: {describe(error)}; the worker's log has the traceback"
        ) from error


def tear_down(handler: Handler, resources: HandlerResources) -> None:
    """Call the handler's ``teardown``; its failure loses nothing and is logged."""
    try:
        if handler.teardown is not None:
            handler.teardown(Context(resources))
    except RAISED as error:
        resources.logger.error("teardown failed", error=describe(error), exc_info=error)


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
            "submit the job again to upload it"
        )
    partial = folder.with_suffix(".partial")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(partial)
        partial.rename(folder)
    except OSError as error:
        message = f"scratch {scratch}: {error}; name another folder with TMPDIR or --scratch"
        raise ServiceError(message) from error
    return folder


def _around(module: ModuleType, name: str) -> Callable[[Context], object] | None:
    """The module's ``setup`` or ``teardown``, called by a handler's rule, without an item."""
    function = getattr(module, name, None)
    if function is None:
        return None
    try:
        if not isinstance(function, type):  # a class is fine: its instance is the state
            check_kind(function)
        if is_coroutine(function):
            raise NotCallable("is a coroutine function; make it a plain function")
        return signatures.accepting_context_only(function)
    except NotCallable as error:
        raise UserError(f"handler: {name} of module {module.__name__!r} {error}") from error


def _function(entry: str) -> tuple[ModuleType, Callable[..., Any]]:
    module_name, _, function_name = entry.partition(":")
    try:
        module = importlib.import_module(module_name)
    except RAISED as error:
        missing = isinstance(error, ImportError)
        fix = "ship it with handler.code or install it there" if missing else "correct the module"
        raise UserError(
            f"handler.entry: module {module_name!r} can't be imported on the node: "
            f"{describe(error)}; {fix}"
        ) from error
    handle = getattr(module, function_name, None)
    if handle is None:
        raise UserError(
            f"handler.entry: module {module_name!r} has no function {function_name!r}; define it "
            "or correct the name"
        )
    return module, handle


def _plugin(name: str) -> tuple[ModuleType, Callable[..., Any]]:
    found = [point for point in entry_points(group=PLUGIN_GROUP) if point.name == name]
    if not found:
        raise UserError(
            f"handler.plugin: {name!r} is not installed on the node; install the distribution "
            f"that has it as an entry point of {PLUGIN_GROUP!r}, or correct the name"
        )
    try:
        return importlib.import_module(found[0].module), found[0].load()
    except RAISED as error:
        raise UserError(
            f"handler.plugin: {name!r} ({found[0].value}) can't be loaded on the node: "
            f"{describe(error)}; correct the distribution that has it"
        ) from error

"""The handler's code on the node: the job's zip, unpacked, and its requirements, installed."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from pathlib import Path

from slurm_worker.errors import UserError
from slurm_worker.protocol.job_config import HandlerConfig
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.ports import ObjectStore

_PIP = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")


def bring_code(config: HandlerConfig, objects: ObjectStore, paths: JobPaths, scratch: Path) -> Path:
    """Unpack the job's code, install its requirements, and make both importable; the folder.

    Raises:
        UserError: if the code is missing or damaged, or pip can't install the requirements.
    """
    folder = _unpack(config.code_sha256, objects, paths, scratch)
    if config.requirements:
        _put_first(_install(folder / config.requirements, scratch / "requirements"))
    _put_first(folder)
    return folder


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
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        archive.extractall(partial)
    partial.rename(folder)
    return folder

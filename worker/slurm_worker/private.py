"""Folders that no other user of the machine can change.

A user that can rename a folder, or write into it, decides what is in it. So a folder is used only
if it and every folder above it belong to this user or to root, and no other user may write into
them. A folder above with the sticky bit, such as ``/tmp``, is safe: there users rename only their
own files. `slurm/submission.py` has the same rule in shell.

Standard library only: the worker's file runs it before anything is unpacked.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class UnsafeFolder(PermissionError):
    """Another user can change the folder; the message says which part of its path, and why."""


def check_folder(path: Path) -> None:
    """Raise an `UnsafeFolder` if another user can change any part of the folder's path."""
    absolute, real = Path(os.path.abspath(path)), path.resolve()  # noqa: PTH100  keeps the links
    trusted = {os.getuid(), 0, *_unmapped()}
    # Also the links on the way: their owners decide where they lead.
    for part in dict.fromkeys([absolute, *absolute.parents, real, *real.parents]):
        _check(part, trusted, stat.S_ISVTX)


def own_folder(path: Path) -> Path:
    """Make a folder for this user alone, or use this user's existing one; return its real path.

    Raises:
        UnsafeFolder: if another user owns it, or can change any part of its path.
        OSError: if it can't be made.
    """
    _make(path)
    check_folder(path)
    real = path.resolve()
    _check(real, {os.getuid()}, 0)
    real.chmod(0o700)
    return real


def new_folder(parent: Path, prefix: str) -> Path:
    """Make a folder for this user alone, with a random name; raises what `own_folder` does."""
    _make(parent)
    check_folder(parent)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent.absolute()))


def is_ours(path: Path) -> bool:
    """Whether this is a folder, not a link, that this user owns and no other user may enter."""
    try:
        found = path.lstat()
    except OSError:
        return False
    owned = found.st_uid == os.getuid()
    return stat.S_ISDIR(found.st_mode) and owned and not found.st_mode & _OTHERS


def _make(path: Path) -> None:
    # mkdir(parents=True) would make those above as open as the umask allows.
    for folder in (*reversed(path.absolute().parents), path):
        if not folder.exists():
            with suppress(FileExistsError):
                folder.mkdir(0o700)


def _check(path: Path, owners: set[int], safe_mode: int) -> None:
    """Refuse what others own, or may change, unless a bit of `safe_mode` makes that safe."""
    found = path.lstat()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in owners:
        raise UnsafeFolder(f"{str(path)!r} belongs to another user (uid {found.st_uid})")
    if mode & _OTHERS_WRITE and not mode & safe_mode and not stat.S_ISLNK(found.st_mode):
        raise UnsafeFolder(f"other users can change {str(path)!r} (mode {mode:04o})")


def _unmapped() -> list[int]:
    """The user that root's folders seem to belong to in a container that doesn't know root."""
    try:
        if Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]:
            return []
        return [int(Path("/proc/sys/kernel/overflowuid").read_text())]
    except (OSError, ValueError):
        return []

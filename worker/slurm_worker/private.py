"""Folders that no other user of the machine can change.

Whoever can rename a folder, or write into it, decides what is found there. So a folder is
taken only if it and every folder above it belong to this user or to root, and nobody else may
write into them. The sticky bit, as ``/tmp`` has it, makes a folder above safe: there one
renames only what is one's own. `slurm/submission.py` has the same rule in shell.

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
    """Refuse a folder of which another user can change any part of the path.

    Raises:
        UnsafeFolder: naming the part.
        OSError: if it can't be looked at.
    """
    absolute, real = Path(os.path.abspath(path)), path.resolve()  # noqa: PTH100  keeps the links
    trusted = {os.getuid(), 0, *_unmapped()}
    # Also the links on the way: who owns one decides where it leads.
    for each in dict.fromkeys([absolute, *absolute.parents, real, *real.parents]):
        found = each.lstat()
        if found.st_uid not in trusted:
            raise _of_another(each, found)
        sticky = found.st_mode & stat.S_ISVTX
        if not stat.S_ISLNK(found.st_mode) and found.st_mode & _OTHERS_WRITE and not sticky:
            raise _open_to_others(each, found)


def own_folder(path: Path) -> Path:
    """Make a folder for this user alone, or take this user's that is there; its real path.

    Raises:
        UnsafeFolder: if another user owns it, or can change any part of its path.
        OSError: if it can't be made.
    """
    _make(path)
    check_folder(path)
    real = path.resolve()
    found = real.lstat()
    if found.st_uid != os.getuid():
        raise _of_another(real, found)
    if found.st_mode & _OTHERS_WRITE:
        raise _open_to_others(real, found)
    real.chmod(0o700)
    return real


def new_folder(parent: Path, prefix: str) -> Path:
    """Make a folder for this user alone, with a name that nobody can guess.

    Raises:
        UnsafeFolder: if another user can change any part of the parent's path.
        OSError: if it can't be made.
    """
    _make(parent)
    check_folder(parent)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent.absolute()))


def is_ours(path: Path) -> bool:
    """Whether this is a folder, no link, that this user owns and nobody else may enter."""
    try:
        found = path.lstat()
    except OSError:
        return False
    owned = found.st_uid == os.getuid()
    return stat.S_ISDIR(found.st_mode) and owned and not found.st_mode & _OTHERS


def _make(path: Path) -> None:
    # By mkdir(parents=True) those above would be as open as the umask leaves them.
    for each in (*reversed(path.absolute().parents), path):
        if not each.exists():
            with suppress(FileExistsError):
                each.mkdir(0o700)


def _of_another(path: Path, found: os.stat_result) -> UnsafeFolder:
    return UnsafeFolder(f"{str(path)!r} belongs to another user (uid {found.st_uid})")


def _open_to_others(path: Path, found: os.stat_result) -> UnsafeFolder:
    mode = stat.S_IMODE(found.st_mode)
    return UnsafeFolder(f"other users can change {str(path)!r} (mode {mode:04o})")


def _unmapped() -> list[int]:
    """The user that root's folders seem to belong to in a container that doesn't know root."""
    try:
        if Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]:
            return []
        return [int(Path("/proc/sys/kernel/overflowuid").read_text())]
    except (OSError, ValueError):
        return []

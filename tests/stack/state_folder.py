"""Where the stack keeps its state: ``.stack/`` in the checkout, or a link from there.

Jobs run from this folder. The cluster's user must be able to enter it, and nobody else may change
it. Some checkouts are in a folder that is closed to others (a clone in root's home) or that others
can change (one that a group may write into). Then `.stack` is a link to a folder under /var/tmp
that is named after the checkout. This module uses only the standard library, because the bootstrap
runs it before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from pathlib import Path


def state_folder(root: Path) -> Path:
    """The state's real folder; made, with its link, if absent."""
    link = root / ".stack"
    if not link.exists():
        if _only_ours_to_change(root) and (os.geteuid() != 0 or _open_to_others(root)):
            link.mkdir(mode=0o755)
        else:
            _link_elsewhere(root, link)
    return link.resolve()


def _link_elsewhere(root: Path, link: Path) -> None:
    name = hashlib.sha256(str(root).encode()).hexdigest()[:12]
    target = Path("/var/tmp") / f"airflow-slurm-stack-{name}"
    target.mkdir(mode=0o755, exist_ok=True)
    owner = target.lstat()
    if not stat.S_ISDIR(owner.st_mode) or owner.st_uid != os.geteuid():
        raise SystemExit(f"{target}: is not our own folder; remove it, then try again")
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _open_to_others(folder: Path) -> bool:
    return all(each.stat().st_mode & stat.S_IXOTH for each in (folder, *folder.parents))


def _only_ours_to_change(folder: Path) -> bool:
    for each in (folder, *folder.parents):
        found = each.stat()
        others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if found.st_uid not in (0, os.geteuid()):
            return False
        if others_write and not found.st_mode & stat.S_ISVTX:
            return False
    return True


if __name__ == "__main__":
    print(state_folder(Path(__file__).resolve().parents[2]))
    sys.exit(0)

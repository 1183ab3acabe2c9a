"""A small scratch disk for each node, which can be filled and freed.

Each is a tmpfs of its own, so that no real disk is ever filled. A job finds the disk of its node by
a line of its `setup`. As root; mounts that an earlier round left are taken away first.
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.stack import slurm
from tests.stack.process import run
from tests.stack.settings import Settings

_SIZE_MB = 48
_PIECE = 1 << 16
_FULL_S = (4.0, 9.0)
_FILLER = "filler"


@dataclass
class Disks:
    """The disks of all nodes.

    Args:
        folder: with a mount for each node, by its name.
        rng: chooses which disk is filled, and for how long.
        say: called with a line when a disk is freed.
    """

    folder: Path
    rng: random.Random
    say: Callable[[str], None]
    _full: dict[str, float] = field(default_factory=dict)

    @property
    def setup(self) -> str:
        """The line of a job's `slurm.setup` that has its workers use the disk of their node."""
        return f'export TMPDIR={shlex.quote(str(self.folder))}/"$SLURMD_NODENAME"'

    def fill(self, nodes: Collection[str]) -> str:
        """Fill the disk of one of these nodes; which one, or nothing where all are full."""
        free = sorted(set(nodes) - set(self._full))
        if not free:
            return ""
        node = self.rng.choice(free)
        seconds = self.rng.uniform(*_FULL_S)
        self._full[node] = time.monotonic() + seconds
        self._keep_full(node)
        return f"the scratch of {node} is full for {seconds:.0f} s"

    def step(self) -> None:
        """Free the disks whose time is over; fill what was freed on the others."""
        now = time.monotonic()
        for node in list(self._full):
            if self._full[node] > now:
                self._keep_full(node)
            else:
                self._free(node)

    def close(self) -> None:
        """Leave no disk full."""
        for node in list(self._full):
            self._free(node)

    def _keep_full(self, node: str) -> None:
        with contextlib.suppress(OSError), (self.folder / node / _FILLER).open("ab", 0) as file:
            for size in (_PIECE, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    def _free(self, node: str) -> None:
        del self._full[node]
        (self.folder / node / _FILLER).unlink(missing_ok=True)
        self.say(f"the scratch of {node} is free")


@contextmanager
def mounted_disks(
    settings: Settings, rng: random.Random, say: Callable[[str], None]
) -> Iterator[Disks]:
    """Mount a disk for each node of the stack, and take them away at the end."""
    folder = settings.folder("scratch")
    _unmount(folder)
    try:
        for node in slurm.NODES:
            (folder / node).mkdir(parents=True)
            options = f"size={_SIZE_MB}m,mode=1777"
            run(["mount", "-t", "tmpfs", "-o", options, "chaos", folder / node])
        yield Disks(folder, rng, say)
    finally:
        _unmount(folder)


def _unmount(folder: Path) -> None:
    for node in slurm.NODES:
        while os.path.ismount(folder / node):
            # Lazily: the last worker may not have ended, and its files go with it.
            run(["umount", "-l", folder / node])
        with contextlib.suppress(FileNotFoundError):
            (folder / node).rmdir()
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()

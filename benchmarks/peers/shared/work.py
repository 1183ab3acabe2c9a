"""The task that all are given: a handler, and for the peers a bundle of items as one file.

Standard library alone: ours ships this very file to its nodes, the peers import it. The folder
that all share is named by PEERS_FOLDER. Each process that runs the handler keeps a log of the
keys that it began, named after it, so that each run of the handler is counted.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import sys
import time
from pathlib import Path

BUNDLE = 500
WAIT_S = 0.001


def folder() -> Path:
    """What all processes of a run share."""
    return Path(os.environ["PEERS_FOLDER"])


def results() -> Path:
    """Where the peers put a file per bundle."""
    return folder() / "results"


def item(number: int) -> dict[str, object]:
    """The item of this number; its key has always the same length."""
    return {"id": f"k{number:08}", "n": number}


def handle(item: dict[str, object], context: object = None) -> dict[str, object]:
    """Wait as a client of an API does, and give the item back."""
    os.write(_log(os.getpid()), f"{item['id']}\n".encode())
    time.sleep(WAIT_S)
    return item


@functools.lru_cache(maxsize=1)
def _log(pid: int) -> int:
    """The log of this process: one that was forked has another id, and so another log."""
    path = folder() / "executions" / f"{pid}.log"
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def bundle(first: int, count: int = BUNDLE) -> int:
    """Run a bundle unless its file is there; the file appears whole and on disk, or not at all."""
    path = results() / f"{first:08}.jsonl"
    if path.exists():
        return 0
    draft = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}")
    with draft.open("w") as out:
        for number in range(first, first + count):
            out.write(json.dumps(handle(item(number))) + "\n")
        out.flush()
        os.fsync(out.fileno())
    draft.replace(path)
    return count


def missing(items: int) -> list[int]:
    """First numbers of the bundles that have no file yet."""
    there = {path.stem for path in results().glob("*.jsonl")}
    return [first for first in range(0, items, BUNDLE) if f"{first:08}" not in there]


if __name__ == "__main__":
    bundle(int(sys.argv[1]))

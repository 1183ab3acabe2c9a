"""The processes of a run: their memory, which one to kill, and their end. Reads /proc.

A process belongs to a run if PEERS_FOLDER in its environment is the run's folder. It also belongs
to the run if its working folder is the run's folder, because some processes overwrite their
environment with their title. Only such processes are read or signalled. A descriptor (pidfd) is
held during a signal, so that it can't reach another process.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

VARIABLE = "PEERS_FOLDER"


def of_run(folder: Path) -> list[int]:
    """Processes of the run, started here or by Slurm, in order of their ids."""
    return sorted(pid for pid in _all() if is_of_run(pid, folder))


def is_of_run(pid: int, folder: Path) -> bool:
    """Whether a living process belongs to the run."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        works_in = Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return False
    return f"{VARIABLE}={folder}".encode() in words or folder in (works_in, *works_in.parents)


def tree(root: int) -> list[int]:
    """A process and all its descendants."""
    return _below(root, {pid: parent for pid in _all() if (parent := _parent(pid)) is not None})


def _below(root: int, parents: Mapping[int, int]) -> list[int]:
    found = [root]
    for each in found:
        found += [pid for pid, parent in parents.items() if parent == each]
    return found


def resident_mb(pid: int, what: str = "VmRSS") -> float:
    """Resident memory of a process, now or (VmHWM) at its peak; 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) / 1024
    return 0.0


def at_work(executions: Path) -> list[int]:
    """Processes that run the handler, found by their open logs; the latest writer first."""
    found = []
    for log in executions.glob("*.log"):
        with contextlib.suppress(OSError, ValueError):
            if _holds(int(log.stem), log):
                found.append((log.stat().st_mtime, int(log.stem)))
    return [pid for _, pid in sorted(found, reverse=True)]


def kill(pid: int, folder: Path) -> bool:
    """kill -9 a process of the run; False if it has ended or does not belong to the run."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not is_of_run(pid, folder):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def end(folder: Path, spare: Iterable[int] = ()) -> int:
    """Kill the remaining processes of a run; return how many there were."""
    kept = {os.getpid(), *spare}
    return sum(kill(pid, folder) for pid in of_run(folder) if pid not in kept)


def _all() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _holds(pid: int, log: Path) -> bool:
    """Whether the process has this file open; the pid in the file's name may be reused."""
    wanted = str(log)
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(each.readlink()) == wanted:
                return True
    return False

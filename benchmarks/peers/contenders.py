"""The tools in the comparison, and how each one is started."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.stack.settings import ROOT
from tests.stack.state_folder import state_folder

HERE = Path(__file__).parent
SHARED = HERE / "shared"
WORKERS = 2


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a bundle: when it was complete (seconds since the epoch), and its keys."""

    at: float
    keys: tuple[str, ...]


class Contender(Protocol):
    """A tool in the comparison."""

    @property
    def name(self) -> str:
        """Its name in the table and for --only."""

    @property
    def note(self) -> str:
        """How it was set up, for below the table."""

    @property
    def kills(self) -> tuple[str, ...]:
        """The processes that a kill -9 is tried on: worker, driver."""

    def prepare(self) -> None:
        """Install it; this is not measured."""

    def command(self, folder: Path, items: int) -> list[str]:
        """The command of a user; the same command again resumes the run in the folder."""

    def results(self, folder: Path) -> Iterator[Result]:
        """The bundles whose results are durable."""

    def cancel(self, folder: Path) -> None:
        """Cancel the jobs of the run that Slurm still has."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A program in `programs/`, with its own environment for its packages.

    Args:
        name: in the table.
        program: the file.
        note: how it was set up.
        packages: pinned; none for a program of the standard library.
        kills: the processes that a kill -9 is tried on.
    """

    name: str
    program: str
    note: str
    packages: tuple[str, ...] = ()
    kills: tuple[str, ...] = ("worker", "driver")

    def prepare(self) -> None:
        environment = self._python().parents[1]
        # Written last: an incomplete environment is made again.
        complete = environment / "complete"
        if not self.packages or complete.exists():
            return
        shutil.rmtree(environment, ignore_errors=True)
        environment.parent.mkdir(parents=True, exist_ok=True)
        uv, python = find_uv(), str(self._python())
        _install(self.name, [uv, "venv", "--quiet", "--python", sys.executable, str(environment)])
        install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python]
        _install(self.name, [*install, *self.packages])
        complete.touch()

    def command(self, folder: Path, items: int) -> list[str]:
        return self.program_with(str(items), str(WORKERS))

    def program_with(self, *arguments: str) -> list[str]:
        """The program in its environment, with these arguments."""
        return [str(self._python()), str(HERE / "programs" / self.program), *arguments]

    def results(self, folder: Path) -> Iterator[Result]:
        for path in sorted((folder / "results").glob("*.jsonl")):
            keys = tuple(json.loads(line)["id"] for line in path.read_text().splitlines())
            yield Result(path.stat().st_mtime, keys)

    def cancel(self, folder: Path) -> None:
        cancel_jobs(folder.name)

    def _python(self) -> Path:
        if not self.packages:
            return Path(sys.executable)
        digest = hashlib.sha256(" ".join(self.packages).encode()).hexdigest()[:8]
        return state_folder(ROOT) / "peers" / f"{self.name}-{digest}" / "bin" / "python"


def _install(name: str, command: list[str]) -> None:
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no output"])[-1]
        raise SystemExit(f"peers: {name} can't be installed: {last}")


def find_uv() -> str:
    """uv, from PATH or as installed by `make setup`."""
    own = state_folder(ROOT) / "tools" / "bin" / "uv"
    found = shutil.which("uv") or (str(own) if own.exists() else None)
    if found is None:
        raise SystemExit(
            "peers: uv is not on PATH, and it is needed to install the peers; run: make setup"
        )
    return found


def jobs_of(name: str) -> list[str]:
    """Ids of Slurm jobs that have the run's name in their name, comment or working folder."""
    listed = subprocess.run(
        ["squeue", "--noheader", "--all", "--format=%A %j %k %Z"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    lines = [line.split(None, 1) for line in listed.stdout.splitlines() if name in line]
    return sorted({line[0] for line in lines})


def cancel_jobs(name: str) -> None:
    """Cancel the Slurm jobs of the run by their ids."""
    if jobs := jobs_of(name):
        subprocess.run(["scancel", *jobs], check=False, capture_output=True, timeout=30)


PEERS = (
    Peer(
        "plain loop",
        "loop.py",
        "One process, one bundle after the other, without Slurm: the lower bound. Its worker is "
        "its driver.",
        kills=("driver",),
    ),
    Peer(
        "dask-jobqueue",
        "with_dask.py",
        "`SLURMCluster` with two jobs of one worker under a nanny, a future per bundle, "
        "`retries=3` and three allowed failures.",
        ("dask-jobqueue==0.9.0", "distributed==2026.8.0"),
    ),
    Peer(
        "submitit",
        "with_submitit.py",
        "`map_array` of ten elements, two at a time, each a `Checkpointable` with a tenth of the "
        "bundles. It requeues after a time limit or preemption, not after a crash. A restarted "
        "driver waits for the existing array before it submits the missing bundles.",
        ("submitit==1.5.4",),
    ),
    Peer(
        "Parsl",
        "with_parsl.py",
        "`HighThroughputExecutor` on `SlurmProvider` with two blocks of one worker, `retries=3`, "
        "memoized apps with a checkpoint at the exit of each task. The driver's memory includes "
        "the interchange process.",
        ("parsl==2026.10.26",),
    ),
    Peer(
        "sbatch per bundle",
        "with_sbatch.py",
        "A job per bundle without a result file, in two chains of `--dependency=singleton`, with "
        "`--requeue`, which helps after the loss of a node but not after a crash.",
    ),
)

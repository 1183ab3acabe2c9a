"""Slurm's commands as small shell programs over text files, with every way to fail.

`mode` says what sbatch does next; `jobs` is the queue, `ended` the accounting, a line
``<id> <name>`` per array; `calls` has a line per call of sbatch.
"""

from __future__ import annotations

import os
from pathlib import Path

from airflow_slurm_provider.slurm.transport import CommandResult, LocalTransport, Transport
from slurm_worker.errors import ServiceError

_SBATCH = r"""#!/bin/sh
echo "$*" >> "$FAKE/calls"
name=$(sed -n 's/^#SBATCH --job-name=//p' script.sh)
mode=$(cat "$FAKE/mode")
take() {
  id=$(($(cat "$FAKE/last") + 1))
  echo "$id" > "$FAKE/last"
  echo "$id $name" >> "$FAKE/$1"
}
fail() {
  echo "sbatch: error: Batch job submission failed: $1" >&2
  exit 1
}
case $mode in
  ok) if grep -q partition=nope script.sh; then fail "Invalid partition name specified"; fi
      take jobs; echo "$id" ;;
  banner) take jobs; echo "Welcome to the lab, 42 users"; echo "$id;cluster" ;;
  refuse) echo "sbatch: error: invalid partition specified: nope" >&2
          fail "Invalid partition name specified" ;;
  full) echo "sbatch: error: AssocMaxSubmitJobLimit" >&2
        fail "Job violates accounting/QOS policy (job submit limit, etc.)" ;;
  lost) take jobs; fail "Socket timed out on send/recv operation" ;;
  lost-and-ended) take ended; fail "Socket timed out on send/recv operation" ;;
  unreachable) fail "Unable to contact slurm controller (connect failure)" ;;
  killed-by-timeout) exit 124 ;;
  kill-caller) take jobs; kill -9 $PPID ;;
  kill-caller-before) kill -9 $PPID ;;
  overtaken) take jobs; echo 4711 > id; echo "$id" ;;
  silent) take jobs ;;
  odd-refusal-but-taken) take jobs; fail "something odd" ;;
esac
"""
_SQUEUE = r"""#!/bin/sh
if [ -e "$FAKE/squeue-down" ]; then
  echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1
fi
for each; do case $each in --name=*) name=${each#--name=} ;; esac; done
awk -v n="$name" '$2 == n { print $1 }' "$FAKE/jobs"
"""
_SACCT = r"""#!/bin/sh
if [ -e "$FAKE/no-accounting" ]; then
  echo "Slurm accounting storage is disabled" >&2; exit 1
fi
if [ -e "$FAKE/sacct-down" ]; then
  echo "sacct: error: Problem talking to the database: Connection refused" >&2; exit 1
fi
for each; do case $each in --name=*) name=${each#--name=} ;; esac; done
awk -v n="$name" '$2 == n { print $1 "_[0-3]" }' "$FAKE/ended"
"""
_SCANCEL = '#!/bin/sh\necho "$1" >> "$FAKE/cancelled"\nsed -i "/^$1 /d" "$FAKE/jobs"\n'
#: sbatch's parent is the submitting shell, as where there is no timeout program.
_TIMEOUT = '#!/bin/sh\nwhile [ "$1" != sbatch ]; do shift; done\nexec "$@"\n'


class FakeSlurm:
    """A login node in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for name, text in {
            "sbatch": _SBATCH,
            "squeue": _SQUEUE,
            "sacct": _SACCT,
            "scancel": _SCANCEL,
            "timeout": _TIMEOUT,
        }.items():
            path = folder / "bin" / name
            path.write_text(text)
            path.chmod(0o755)
        for name in ("calls", "jobs", "ended", "cancelled"):
            (folder / name).touch()
        (folder / "last").write_text("100")
        self.mode("ok")

    def mode(self, mode: str) -> None:
        (self.folder / "mode").write_text(mode)

    def set(self, switch: str) -> None:
        (self.folder / switch).touch()

    def clear(self, switch: str) -> None:
        (self.folder / switch).unlink()

    def lines(self, name: str) -> list[str]:
        return (self.folder / name).read_text().splitlines()

    def transport(self) -> LocalTransport:
        return LocalTransport(
            {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "FAKE": str(self.folder)}
        )


class BreakingTransport:
    """Breaks at the n-th command (from 0), before or after it has run; fine from then on."""

    def __init__(self, inner: Transport, at: int, *, after: bool) -> None:
        self._inner = inner
        self._at = at
        self._after = after
        self.commands = 0

    def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
        number, self.commands = self.commands, self.commands + 1
        if number == self._at and not self._after:
            raise ServiceError("the connection broke before")
        result = self._inner.run(command, stdin, timeout)
        if number == self._at:
            raise ServiceError("the connection broke after")
        return result

    def close(self) -> None:
        self._inner.close()


class Time:
    """A clock that only sleeping moves; what happens meanwhile can be given."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)

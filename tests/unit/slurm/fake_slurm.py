"""Slurm's commands as small shell programs over text files, with every way to fail.

`mode` says what sbatch does next; `jobs` is the queue, `ended` the accounting, a line
``<id> <name>`` per array; `put-back` has those that are completing, and wait next; `calls` has a
line per call of sbatch. scancel does nothing while
there is a file `deaf`, and exits with 0, as the real one does for many reasons.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from airflow_slurm_provider.slurm.transport import CommandResult, LocalTransport, Transport
from slurm_worker.errors import ServiceError

_SBATCH = r"""#!/bin/sh
echo "$*" >> "$FAKE/calls"
for each; do case $each in --job-name=*) name=${each#--job-name=} ;; esac; done
mode=$(cat "$FAKE/mode")
if [ -n "$SBATCH_ARRAY_INX" ]; then echo "$SBATCH_ARRAY_INX" >> "$FAKE/sized"; fi
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
  paused) while [ -e "$FAKE/pause" ]; do sleep 0.05; done; take jobs; echo "$id" ;;
  paused-and-killed) while [ -e "$FAKE/pause" ]; do sleep 0.05; done
                     take jobs; kill -9 $PPID ;;
  odd-refusal-but-taken) take jobs; fail "something odd" ;;
esac
"""
_SQUEUE = r"""#!/bin/sh
if [ -e "$FAKE/squeue-down" ]; then
  echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1
fi
if [ -n "$SQUEUE_PARTITION" ]; then exit 0; fi
for each; do case $each in --name=*) names=${each#--name=} ;; %F*) fields=$each ;; esac; done
shown=$FAKE/jobs
case "$*" in *COMPLETING*|*"-t all"*) shown="$shown $FAKE/put-back" ;; esac
awk -v n=",$names," -v f="$fields" 'index(n, "," $2 ",") {
  print f == "%F" ? $1 : $1 "|" $2
}' $shown
"""
_SACCT = r"""#!/bin/sh
if [ -e "$FAKE/no-accounting" ]; then
  echo "Slurm accounting storage is disabled" >&2; exit 1
fi
if [ -e "$FAKE/sacct-down" ]; then
  echo "sacct: error: Problem talking to the database: Connection refused" >&2; exit 1
fi
for each; do case $each in --name=*) names=${each#--name=} ;; JobID*) fields=$each ;; esac; done
awk -v n=",$names," -v f="$fields" 'index(n, "," $2 ",") {
  print $1 "_[0-3]" (f == "JobID" ? "" : "|" $2)
}' "$FAKE/ended"
"""
_SCANCEL = r"""#!/bin/sh
if [ -e "$FAKE/deaf" ] || [ -n "$SCANCEL_STATE" ]; then exit 0; fi
for each; do case $each in --name=*) name=${each#--name=} ;; -*) ;; *) id=$each ;; esac; done
for list in jobs put-back; do
  awk -v n="$name" -v i="$id" '(n == "" || $2 == n) && (i == "" || $1 == i) {
    print $1 >> (ENVIRON["FAKE"] "/cancelled"); next
  } { print }' "$FAKE/$list" > "$FAKE/$list.$$"
  mv "$FAKE/$list.$$" "$FAKE/$list"
done
"""
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
            "sleep": "#!/bin/sh\nexec /bin/sleep 0.02\n",
        }.items():
            path = folder / "bin" / name
            path.write_text(text)
            path.chmod(0o755)
        for name in ("calls", "sized", "jobs", "put-back", "ended", "cancelled"):
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

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "FAKE": str(self.folder)}

    def transport(self, variables: Mapping[str, str] | None = None) -> LocalTransport:
        """The login node of an account with these variables."""
        return LocalTransport({**self.environment, **(variables or {})})


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

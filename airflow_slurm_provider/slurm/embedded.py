"""The embedded cluster: Slurm's commands for arrays, run as processes of this machine.

For trying out on a laptop, and for tests; it is no batch system. A folder holds small
`sbatch squeue sacct scancel srun scontrol` programs, put in front of PATH, so that the
same client code runs on it as on a real cluster. State is in SQLite; one supervisor
process per folder starts up to `slots` elements at a time, and ends when nothing is left.
Semantics kept: arrays with throttle, cancel, requeue, time limit with USR1 before it,
exit codes, output patterns, states and text formats that `client.py` asks for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import airflow_slurm_provider
from airflow_slurm_provider.slurm.transport import LocalTransport

_VERBS = ("sbatch", "squeue", "sacct", "scancel", "srun", "scontrol")
_KILL_WAIT_S = 10.0
_TICK_S = 0.05
_LOCK_WAIT_S = 10.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, script TEXT, cwd TEXT, output TEXT,
    throttle INTEGER, limit_s REAL, grace_s REAL);
CREATE TABLE IF NOT EXISTS elements (
    job INTEGER, element INTEGER, state TEXT DEFAULT 'PENDING', exit_code TEXT DEFAULT '0:0',
    pid INTEGER, started REAL, restarts INTEGER DEFAULT 0, wish TEXT DEFAULT '',
    asked REAL, warned INTEGER DEFAULT 0, PRIMARY KEY (job, element));
"""


class EmbeddedTransport(LocalTransport):
    """A transport to the embedded cluster in `directory`; made if absent.

    Args:
        directory: its folder.
        slots: elements that run at the same time; the machine's cores by default.
    """

    def __init__(self, directory: str | Path, slots: int | None = None) -> None:
        folder = Path(directory).expanduser().resolve()
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        package = Path(airflow_slurm_provider.__file__).parent.parent
        for verb in _VERBS:
            shim = folder / "bin" / verb
            text = (
                f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(package))}${{PYTHONPATH:+:$PYTHONPATH}} "
                f"exec {shlex.quote(sys.executable)} -m airflow_slurm_provider.slurm.embedded "
                f'{shlex.quote(str(folder))} {verb} "$@"\n'
            )
            if verb == "srun":
                text = _SRUN
            if not shim.exists() or shim.read_text() != text:
                partial = shim.with_suffix(f".{os.getpid()}")
                partial.write_text(text)
                partial.chmod(0o755)
                partial.rename(shim)
        super().__init__(
            {
                "PATH": f"{folder / 'bin'}:{os.environ.get('PATH', os.defpath)}",
                "EMBEDDED_SLOTS": str(slots or os.cpu_count() or 1),
            }
        )


#: ``srun`` starts its one task in place of itself, so that signals reach it.
_SRUN = """\
#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
exec "$@"
"""


def main(argv: list[str]) -> int:
    """Run one verb: ``FOLDER VERB ARGUMENT…``."""
    folder, verb, *arguments = argv
    cluster = _Cluster(Path(folder))
    return {
        "sbatch": cluster.sbatch,
        "squeue": cluster.squeue,
        "sacct": cluster.sacct,
        "scancel": cluster.scancel,
        "scontrol": cluster.scontrol,
        "supervise": cluster.supervise,
    }[verb](arguments)


class _Cluster:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._db = sqlite3.connect(folder / "state.db", isolation_level=None, timeout=30)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(_SCHEMA)
        self._children: dict[tuple[int, int], subprocess.Popen[bytes]] = {}

    # --- the commands ---------------------------------------------------------

    def sbatch(self, arguments: list[str]) -> int:
        if "--version" in arguments:
            return _say(f"slurm-embedded {airflow_slurm_provider.__version__}")
        script = Path(next(each for each in arguments if not each.startswith("-"))).resolve()
        options = _options(script.read_text())
        try:
            first, last, throttle = _array(options.get("array", "0-0"))
            limit = _limit(options.get("time", ""))
        except ValueError as error:
            print(f"sbatch: error: {error}", file=sys.stderr)  # noqa: T201
            return 1
        grace = re.search(r"@(\d+)", options.get("signal", ""))
        self._db.execute("BEGIN IMMEDIATE")
        job = self._db.execute(
            "INSERT INTO jobs (name, script, cwd, output, throttle, limit_s, grace_s) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                options.get("job-name", script.name),
                str(script),
                str(Path.cwd()),
                options.get("output", "slurm-%A_%a.out"),
                throttle,
                limit,
                float(grace.group(1)) if grace else 0.0,
            ),
        ).lastrowid
        self._db.executemany(
            "INSERT INTO elements (job, element) VALUES (?, ?)",
            [(job, each) for each in range(first, last + 1)],
        )
        self._db.execute("COMMIT")
        self._start_supervisor()
        return _say(str(job))

    def squeue(self, arguments: list[str]) -> int:
        jobs = self._chosen(arguments)
        if _option(arguments, "-j") and not jobs:
            print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)  # noqa: T201
            return 1
        template = _option(arguments, "-o") or "%i|%T"
        for job in jobs:
            for element, state, _ in self._elements(job):
                _say(
                    template.replace("%i", f"{job}_{element}")
                    .replace("%F", str(job))
                    .replace("%T", state)
                    .replace("%N", "localhost")
                )
        return 0

    def sacct(self, arguments: list[str]) -> int:
        names = (_option(arguments, "-o") or "JobID,State").split(",")
        for job in self._chosen(arguments):
            for element, state, code in self._elements(job):
                values = {
                    "JobID": f"{job}_{element}",
                    "State": state,
                    "NodeList": "localhost",
                    "ExitCode": code,
                }
                _say("|".join(values[name] for name in names))
        return 0

    def scancel(self, arguments: list[str]) -> int:
        for target in arguments:
            job, _, element = target.partition("_")
            self._wish("cancel", job, element)
        self._start_supervisor()
        return 0

    def scontrol(self, arguments: list[str]) -> int:
        if arguments[:1] != ["requeue"] or len(arguments) != 2:
            print("scontrol: error: only requeue is known here", file=sys.stderr)  # noqa: T201
            return 1
        job, _, element = arguments[1].partition("_")
        self._wish("requeue", job, element)
        return 0

    # --- the supervisor -------------------------------------------------------

    def supervise(self, _arguments: list[str]) -> int:
        """Run elements until none is left; at most one supervisor per folder."""
        with (self._folder / "supervisor.lock").open("w") as lock:
            deadline = time.monotonic() + _LOCK_WAIT_S
            while not _locked(lock.fileno()):
                # Whoever holds it either sees our job too, or is about to end.
                if time.monotonic() > deadline:
                    return 0
                time.sleep(_TICK_S)
            self._bury()
            while self._tick():
                time.sleep(_TICK_S)
        return 0

    def _tick(self) -> bool:
        """Start, watch and end elements once; False when nothing is left."""
        self._reap()
        self._fulfil_wishes()
        self._watch_limits()
        slots = int(os.environ.get("EMBEDDED_SLOTS", "1"))
        waiting = self._db.execute(
            "SELECT e.job, e.element, j.throttle FROM elements e JOIN jobs j ON j.id = e.job "
            "WHERE e.state = 'PENDING' ORDER BY e.job, e.element"
        ).fetchall()
        for job, element, throttle in waiting:
            running = sum(1 for other, _ in self._children if other == job)
            if len(self._children) < slots and (not throttle or running < throttle):
                self._start(job, element)
        return bool(waiting or self._children)

    def _start(self, job: int, element: int) -> None:
        script, cwd, output, name, restarts = self._db.execute(
            "SELECT j.script, j.cwd, j.output, j.name, e.restarts FROM jobs j "
            "JOIN elements e ON e.job = j.id WHERE j.id = ? AND e.element = ?",
            (job, element),
        ).fetchone()
        values = {"%A": str(job), "%a": str(element), "%j": f"{job}_{element}", "%x": name}
        target = Path(cwd) / re.sub("%[Aajx]", lambda match: values[match.group()], output)
        environment = {
            **os.environ,
            "SLURM_JOB_ID": f"{job}_{element}",
            "SLURM_ARRAY_JOB_ID": str(job),
            "SLURM_ARRAY_TASK_ID": str(element),
            "SLURM_JOB_NAME": name,
            "SLURMD_NODENAME": "localhost",
        }
        if restarts:
            environment["SLURM_RESTART_COUNT"] = str(restarts)
        with target.open("ab") as log:
            child = subprocess.Popen(
                ["/bin/bash", script],
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[job, element] = child
        self._set(job, element, state="RUNNING", pid=child.pid, started=time.time(), warned=0)

    def _reap(self) -> None:
        for (job, element), child in list(self._children.items()):
            code = child.poll()
            if code is None:
                continue
            del self._children[job, element]
            (wish,) = self._db.execute(
                "SELECT wish FROM elements WHERE job = ? AND element = ?", (job, element)
            ).fetchone()
            exit_code = f"0:{-code}" if code < 0 else f"{code}:0"
            if wish == "requeue":
                self._db.execute(
                    "UPDATE elements SET state = 'PENDING', wish = '', restarts = restarts + 1 "
                    "WHERE job = ? AND element = ?",
                    (job, element),
                )
                continue
            ended = {"cancel": "CANCELLED", "limit": "TIMEOUT"}.get(wish)
            state = ended or ("COMPLETED" if code == 0 else "FAILED")
            self._set(job, element, state=state, exit_code=exit_code, wish="")

    def _fulfil_wishes(self) -> None:
        for job, element, state, wish, asked in self._db.execute(
            "SELECT job, element, state, wish, asked FROM elements WHERE wish <> ''"
        ).fetchall():
            child = self._children.get((job, element))
            if child is None:
                if state == "PENDING" and wish == "cancel":
                    self._set(job, element, state="CANCELLED", wish="")
                continue
            if asked is None:
                # A worker that asks for its own requeue ends by itself.
                if wish != "requeue":
                    _signal(child, signal.SIGTERM)
                self._set(job, element, asked=time.time())
            elif time.time() - asked > _KILL_WAIT_S and wish != "requeue":
                _signal(child, signal.SIGKILL)

    def _watch_limits(self) -> None:
        for job, element, started, warned, limit, grace in self._db.execute(
            "SELECT e.job, e.element, e.started, e.warned, j.limit_s, j.grace_s FROM elements e "
            "JOIN jobs j ON j.id = e.job WHERE e.state = 'RUNNING' AND j.limit_s > 0 "
            "AND e.wish = ''"
        ).fetchall():
            child = self._children.get((job, element))
            if child is None:
                continue
            left = started + limit - time.time()
            if left <= 0:
                self._wish("limit", str(job), str(element))
            elif left <= grace and not warned:
                _signal(child, signal.SIGUSR1)
                self._set(job, element, warned=1)

    def _bury(self) -> None:
        """Elements of a supervisor that was killed: no one can say how they ended."""
        for job, element, pid in self._db.execute(
            "SELECT job, element, pid FROM elements WHERE state = 'RUNNING'"
        ).fetchall():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            self._set(job, element, state="NODE_FAIL", wish="")

    # --- rows -----------------------------------------------------------------

    def _chosen(self, arguments: list[str]) -> list[int]:
        job, name = _option(arguments, "-j"), _option(arguments, "--name")
        return [
            row[0]
            for row in self._db.execute(
                "SELECT id FROM jobs WHERE (? = '' OR id = ?) AND (? = '' OR name = ?)",
                (job, job, name, name),
            )
        ]

    def _elements(self, job: int) -> Iterator[tuple[int, str, str]]:
        yield from self._db.execute(
            "SELECT element, state, exit_code FROM elements WHERE job = ? ORDER BY element", (job,)
        )

    def _wish(self, wish: str, job: str, element: str) -> None:
        self._db.execute(
            "UPDATE elements SET wish = ?, asked = NULL WHERE job = ? AND (? = '' OR element = ?) "
            "AND state IN ('PENDING', 'RUNNING')",
            (wish, job, element, element),
        )

    def _set(self, job: int, element: int, **values: object) -> None:
        names = ", ".join(f"{name} = ?" for name in values)
        self._db.execute(
            f"UPDATE elements SET {names} WHERE job = ? AND element = ?",  # noqa: S608  our names
            (*values.values(), job, element),
        )

    def _start_supervisor(self) -> None:
        with (self._folder / "supervisor.log").open("ab") as log:
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "airflow_slurm_provider.slurm.embedded",
                    str(self._folder),
                    "supervise",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )


def _options(script: str) -> dict[str, str]:
    """The ``#SBATCH --name=value`` lines of a script."""
    found = {}
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            for word in shlex.split(line.removeprefix("#SBATCH ")):
                name, _, value = word.removeprefix("--").partition("=")
                found[name] = value
    return found


def _array(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?(?:%(\d+))?", text)
    if match is None:
        raise ValueError(f"Invalid job array specification: {text}")
    first = int(match.group(1))
    return first, int(match.group(2) or first), int(match.group(3) or 0)


def _limit(text: str) -> float:
    """Seconds of a ``--time``: minutes, mm:ss, hh:mm:ss or d-hh[:mm[:ss]]."""
    if not text:
        return 0.0
    days, _, rest = text.rpartition("-")
    numbers = [int(each) for each in rest.split(":")]
    if days:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return int(days or 0) * 86400.0 + hours * 3600 + minutes * 60 + seconds


def _option(arguments: list[str], name: str) -> str:
    """The value of ``-o VALUE`` or ``--name=VALUE``; empty where it isn't given."""
    for position, word in enumerate(arguments):
        if word == name:
            return arguments[position + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _say(line: str) -> int:
    print(line)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

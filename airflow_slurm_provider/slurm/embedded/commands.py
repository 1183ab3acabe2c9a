"""The embedded cluster's commands and their state, in one SQLite file per folder.

The programs that `transport` installs run `main` with ``FOLDER VERB ARGUMENT…``. Of Slurm there
are arrays with throttle, cancel, requeue, time limit with USR1 before it, exit codes, output
patterns, and the options and formats that `client` uses. It imports little, because each command
is a new process.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import airflow_slurm_provider
import slurm_worker
from airflow_slurm_provider.slurm.submission import EXPORTED, first_command
from airflow_slurm_provider.units import parse_slurm_time

_SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY, name TEXT, cwd TEXT, output TEXT, size INTEGER,
    throttle INTEGER, limit_s REAL, grace_s REAL, environment TEXT, begin REAL);
CREATE TABLE IF NOT EXISTS elements (
    job INTEGER, element INTEGER, raw_id INTEGER, state TEXT DEFAULT 'PENDING',
    exit_code TEXT DEFAULT '0:0', pid INTEGER, born TEXT, started REAL,
    restarts INTEGER DEFAULT 0, wish TEXT DEFAULT '', asked REAL, warned INTEGER DEFAULT 0,
    PRIMARY KEY (job, element));
CREATE INDEX IF NOT EXISTS alive ON elements (state) WHERE state IN ('PENDING', 'RUNNING');
"""


#: The elements of a ``job``, a ``job_element``, or an element's raw id.
_TARGET = "? IN (job || '', job || '_' || element, raw_id || '')"


class CommandError(Exception):
    """A command fails as Slurm's would: one line and exit code 1."""


class Store:
    """The folder's state; each method is one transaction."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "spool").mkdir(exist_ok=True)
        # Two processes that make the file at once would see it locked.
        with (folder / "state.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.db = sqlite3.connect(folder / "state.db", isolation_level=None, timeout=30)
            self.db.executescript(_SCHEMA)

    def add(self, script: str, request: Request, environment: dict[str, str]) -> int:
        """A new array; its elements' raw ids follow its own, as in Slurm."""
        with self.transaction():
            (job,) = self.db.execute("SELECT COALESCE(MAX(raw_id), 0) + 1 FROM elements").fetchone()
            self.script(job).write_text(script)
            place = (job, request.name, str(Path.cwd()), request.output, len(request.elements))
            limits = (request.throttle, request.limit_s, request.grace_s)
            start = (json.dumps(environment), time.time() + request.delay_s)
            self.db.execute(
                "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*place, *limits, *start)
            )
            self.db.executemany(
                "INSERT INTO elements (job, element, raw_id) VALUES (?, ?, ?)",
                [(job, element, job + n) for n, element in enumerate(request.elements)],
            )
        return int(job)

    def script(self, job: int) -> Path:
        """Where the job's own copy of its script is."""
        return self.folder / "spool" / f"{job}.sh"

    def select(self, jobs: str = "", names: str = "") -> list[tuple[int, int, str, str, str]]:
        """``(job, element, state, exit code, name)`` of the ids and names; all where empty.

        As in Slurm, an element that was cancelled and has not ended yet is completing.
        """
        return self.db.execute(
            "SELECT e.job, e.element, CASE WHEN e.wish = 'cancel' AND e.state IN "
            "('PENDING', 'RUNNING') THEN 'COMPLETING' ELSE e.state END, e.exit_code, j.name "
            "FROM elements e "
            "JOIN jobs j ON j.id = e.job WHERE (? = '' OR instr(?, ',' || j.id || ',')) "
            "AND (? = '' OR instr(?, ',' || j.name || ',')) ORDER BY e.job, e.element",
            (jobs, f",{jobs},", names, f",{names},"),
        ).fetchall()

    def wish(self, wish: str, target: str) -> bool:
        """Ask the supervisor to end elements; False if `target` (see `_TARGET`) names none.

        `wish` is ``cancel``, ``requeue`` or ``limit``.
        """
        (count,) = self.db.execute(
            f"SELECT count(*) FROM elements WHERE {_TARGET}",  # noqa: S608  no value is in it
            (target,),
        ).fetchone()
        self.db.execute(
            f"UPDATE elements SET wish = ?, asked = NULL WHERE {_TARGET} "  # noqa: S608  as above
            "AND wish <> 'cancel' AND state IN ('PENDING', 'RUNNING')",
            (wish, target),
        )
        return bool(count)

    def anything_left(self) -> bool:
        """Whether an element waits or runs."""
        query = "SELECT EXISTS (SELECT 1 FROM elements WHERE state IN ('PENDING', 'RUNNING'))"
        return bool(self.db.execute(query).fetchone()[0])

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """No other process writes until it ends."""
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            yield


@dataclass(frozen=True, slots=True)
class Request:
    """The request of an ``sbatch``."""

    name: str
    output: str
    elements: tuple[int, ...]
    throttle: int
    limit_s: float
    grace_s: float
    delay_s: float


def read_request(script: str, arguments: list[str], default_name: str) -> Request:
    """The ``#SBATCH`` lines before the script's first command, and the arguments over them.

    Raises:
        CommandError: if an option of those that are known here is wrong.
    """
    options: dict[str, str] = {}
    for word in [*_directives(script), *arguments]:
        name, _, value = word.removeprefix("--").partition("=")
        options[name] = value
    elements, throttle = _array(options.get("array", ""))
    grace = re.search(r"@(\d+)", options.get("signal", ""))
    delay = re.fullmatch(r"now\+(\d+)", options.get("begin", "now+0"))
    if delay is None:
        raise CommandError("--begin: this cluster knows now+SECONDS only")
    try:
        limit = parse_slurm_time(options["time"]) if options.get("time") else 0
    except ValueError:
        raise CommandError("Invalid --time specification") from None
    return Request(
        name=options.get("job-name", default_name),
        output=options.get("output", "slurm-%A_%a.out"),
        elements=elements,
        throttle=throttle,
        limit_s=float(limit),
        grace_s=float(grace.group(1)) if grace else 0.0,
        delay_s=float(delay.group(1)),
    )


def _directives(script: str) -> Iterator[str]:
    lines = script.splitlines()
    for line in lines[: first_command(lines)]:
        if line.startswith("#SBATCH "):
            yield from shlex.split(line.removeprefix("#SBATCH "))


def _array(text: str) -> tuple[tuple[int, ...], int]:
    """The elements and the throttle in ``0-7%2`` or ``1,3,5-9:2``; one element if empty."""
    ranges, _, throttle = (text or "0").partition("%")
    elements: list[int] = []
    for part in ranges.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match is None or (throttle and not throttle.isdigit()):
            raise CommandError("Batch job submission failed: Invalid job array specification")
        first, last, step = match.groups()
        elements.extend(range(int(first), int(last or first) + 1, int(step or 1) or 1))
    return tuple(sorted(set(elements))), int(throttle or 0)


def main(argv: list[str]) -> int:
    """Run one command: ``FOLDER VERB ARGUMENT…``."""
    # Only the owner can read or change these files, whatever the caller's umask.
    os.umask(0o077)
    folder, verb, *arguments = argv
    commands = {run.__name__: run for run in (sbatch, squeue, sacct, scancel, scontrol)}
    store = Store(Path(folder))
    try:
        sys.stdout.writelines(f"{line}\n" for line in commands[verb](store, arguments))
    except CommandError as error:
        print(f"{verb}: error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        ensure_supervisor(store)
    return 0


def sbatch(store: Store, arguments: list[str]) -> list[str]:
    """Submit a script; prints the array's id."""
    if "--version" in arguments:
        return [f"slurm-embedded {airflow_slurm_provider.__version__}"]
    position = next((n for n, word in enumerate(arguments) if not word.startswith("-")), None)
    if position is None:
        raise CommandError("no script is given")
    path = Path(arguments[position])
    try:
        script = path.read_text()
    except OSError as error:
        raise CommandError(f"Unable to open file {path}: {error.strerror}") from error
    if not script.startswith("#!"):
        raise CommandError("This does not look like a batch script.")
    request = read_request(script, arguments[:position], path.name)
    # Without the variables of the program around this process.
    own = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDDED_")}
    job = store.add(script, request, own)
    return [str(job) if "--parsable" in arguments else f"Submitted batch job {job}"]


def squeue(store: Store, arguments: list[str]) -> list[str]:
    """The elements in the format of ``-o``; ended ones only with ``-t all``."""
    elements = _elements(store, arguments)
    if _option(arguments, "-j") and not elements:
        raise CommandError("Invalid job id specified")
    wanted = (_option(arguments, "-t") or "PENDING,RUNNING,COMPLETING").split(",")
    template = _option(arguments, "-o") or "%i|%T"
    shown = [values for values in elements if wanted == ["all"] or values["%T"] in wanted]
    return [expand(template, values) for values in shown]


def sacct(store: Store, arguments: list[str]) -> list[str]:
    """The elements' fields of ``-o``, separated by ``|``; values that aren't measured are empty."""
    fields = (_option(arguments, "-o") or "JobID,State").split(",")
    elements = _elements(store, arguments)
    return ["|".join(values.get(field, "") for field in fields) for values in elements]


def _elements(store: Store, arguments: list[str]) -> list[dict[str, str]]:
    """The chosen elements: the values that squeue shows, and those that sacct shows."""
    found = []
    rows = store.select(_option(arguments, "-j"), _option(arguments, "--name"))
    for job, element, state, code, name in rows:
        number, waits = f"{job}_{element}", state == "PENDING"
        node, reason = ("None assigned", "Resources") if waits else ("localhost", "None")
        queue = {"%i": number, "%F": str(job), "%T": state, "%r": reason, "%V": "", "%j": name}
        record = {"JobID": number, "State": state, "ExitCode": code, "JobName": name}
        found.append({**queue, "%N": "" if waits else node, **record, "NodeList": node})
    return found


def scancel(store: Store, arguments: list[str]) -> list[str]:
    """Cancel arrays or elements, or all arrays of a name."""
    targets = [word for word in arguments if not word.startswith("-")]
    if name := _option(arguments, "--name"):
        named = {str(job) for job, *_ in store.select(names=name)}
        targets = sorted({*targets} & named if targets else named)
    for target in targets:
        if not store.wish("cancel", target):
            raise CommandError(f"Invalid job id {target}")
    return []


def scontrol(store: Store, arguments: list[str]) -> list[str]:
    """``requeue`` an element or an array; of ``show config``, one value."""
    if arguments == ["show", "config"]:
        return ["MaxArraySize            = 1001"]
    if arguments[:1] != ["requeue"] or len(arguments) != 2:
        raise CommandError("only requeue and show config are known here")
    if not store.wish("requeue", arguments[1]):
        raise CommandError("Invalid job id specified")
    return []


def expand(template: str, values: Mapping[str, str]) -> str:
    """`template` with its ``%x`` replaced; an unknown one stays."""
    return re.sub("%.", lambda match: values.get(match.group(), match.group()), template)


def ensure_supervisor(store: Store) -> None:
    """Start a supervisor where elements are left and none holds the lock.

    No wake-up is lost: a supervisor releases its lock inside a transaction in which nothing was
    left, and this caller committed its elements before.
    """
    if not store.anything_left():
        return
    with (store.folder / "supervisor.lock").open("w") as lock:
        if not try_lock(lock.fileno()):
            return
    kept = (*EXPORTED, "EMBEDDED_SLOTS", "EMBEDDED_KILL_WAIT")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    with (store.folder / "supervisor.log").open("ab") as log:
        subprocess.Popen(
            isolated("supervisor", str(store.folder)),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )


def try_lock(descriptor: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def isolated(module: str, *arguments: str) -> list[str]:
    """The command that runs a module's `main` with our packages and the interpreter's own.

    The current folder and the environment do not affect imports.
    """
    packages = (airflow_slurm_provider, slurm_worker)
    folders = dict.fromkeys(str(Path(package.__path__[0]).parent) for package in packages)
    program = (
        f"import sys; sys.path[:0] = {list(folders)!r}; "
        f"from airflow_slurm_provider.slurm.embedded.{module} import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    return [sys.executable, "-I", "-c", program, *arguments]


def _option(arguments: list[str], name: str) -> str:
    """The value of ``-o VALUE`` or ``--name=VALUE``; empty where it isn't given."""
    for position, word in enumerate(arguments):
        if word == name:
            return arguments[position + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""

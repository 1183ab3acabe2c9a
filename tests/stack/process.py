"""Services as processes: start one if it is not there, wait until it answers, end it again.

Each service runs in the foreground of its own session, so its process id is certain. The id and
the start time of the process are stored in ``run/<name>.json``. So a process that gets the same id
later is never signalled. Linux only: reads /proc.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.stack.settings import LOOPBACK, PORTS, ROOT, Settings, StackError, listening

_TICK_S = 0.05
_TAIL_LINES = 12


@dataclass(frozen=True, slots=True)
class Service:
    """A process to keep.

    Args:
        name: of its log and its process file.
        argv: the command; it must stay in the foreground.
        ready: whether it does its work by now; its port answering, if absent.
        port: its name in `PORTS`, if it listens.
        claims: further ports, by name, that it needs.
        environment: what it sees, all of it.
        needs: what must be installed for it, for the message when it is not there.
        deadline: seconds from start to ready.
        patience: seconds from SIGTERM to SIGKILL.
    """

    name: str
    argv: Sequence[str]
    ready: Callable[[], bool] | None = None
    port: str | None = None
    claims: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    needs: str = ""
    deadline: float = 60.0
    patience: float = 20.0


@dataclass(frozen=True, slots=True)
class Running:
    """A process that the stack started, as its file tells."""

    name: str
    pid: int
    started: str
    booted: str
    address: str
    patience: float

    @property
    def alive(self) -> bool:
        """Whether the process is still that one, and no zombie."""
        return self.booted == _boot() and _start_time(self.pid) == self.started


def ensure(settings: Settings, service: Service) -> bool:
    """Start the service if needed and wait until it is ready; True if it was started.

    Raises:
        StackError: if it can't be started, or is not ready in time.
    """
    fresh = not is_running(settings, service.name)
    process = _spawn(settings, service) if fresh else None
    ready = service.ready or (lambda: True)
    port = settings.ports[service.port] if service.port else None

    def up() -> bool:
        return (port is None or listening(port)) and ready()

    deadline = time.monotonic() + service.deadline
    while not up():
        if process is not None and process.poll() is not None:
            raise StackError(
                f"{service.name}: ended at once with code {process.returncode}; "
                f"{_tail(settings, service.name)}"
            )
        if time.monotonic() > deadline:
            raise StackError(
                f"{service.name}: not ready after {service.deadline:.0f} s; "
                f"{_tail(settings, service.name)}"
            )
        time.sleep(_TICK_S)
    return fresh


def is_running(settings: Settings, name: str) -> bool:
    """Whether the stack has started this service and it still runs."""
    known = _read(settings, name)
    return known is not None and known.alive


def known_services(state: Path) -> list[Running]:
    """What the stack has started and not yet stopped, in the order of the starts."""
    files = sorted((state / "run").glob("*.json"), key=lambda each: each.stat().st_mtime_ns)
    return [_parse(path) for path in files]


def stop(state: Path, running: Running) -> None:
    """End a service and what is left of its children; returns when all are gone."""
    for number, patience in ((signal.SIGTERM, running.patience), (signal.SIGKILL, 10.0)):
        if running.alive:
            os.kill(running.pid, number)
        if wait_until(lambda: not running.alive, patience):
            break
    # An id that the system gave to another process leads that one's group, and is left alone.
    if running.booted == _boot() and not _start_time(running.pid):
        _end_group(running.pid)
    if running.alive:
        raise StackError(f"{running.name}: process {running.pid} does not end")
    (state / "run" / f"{running.name}.json").unlink(missing_ok=True)


def wait_until(condition: Callable[[], object], seconds: float, every: float = _TICK_S) -> bool:
    """Look at a condition every so many seconds; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def with_children(pid: int) -> list[int]:
    """A process and all below it; none where it has ended."""
    try:
        tasks = [each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    children = [int(each) for text in tasks for each in text.split()]
    return [pid, *(below for child in children for below in with_children(child))]


def run(
    argv: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> str:
    """Run a command to its end and return what it printed.

    Raises:
        StackError: with the end of its output, if it fails or is not there.
    """
    shown = shlex.join(str(part) for part in argv)
    try:
        ended = subprocess.run(
            [str(part) for part in argv],
            cwd=ROOT,
            env=None if environment is None else dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise StackError(f"{argv[0]}: is not installed; run make setup") from None
    except subprocess.TimeoutExpired:
        raise StackError(f"{shown}: not done after {timeout:.0f} s") from None
    if ended.returncode:
        lines = "\n".join(ended.stdout.splitlines()[-_TAIL_LINES:])
        raise StackError(f"{shown}: ended with code {ended.returncode}\n{lines}")
    return ended.stdout


def _spawn(settings: Settings, service: Service) -> subprocess.Popen[bytes]:
    for name in (service.port, *service.claims):
        if name and listening(settings.ports[name]):
            variable = PORTS[name][1]
            raise StackError(
                f"{service.name}: port {settings.ports[name]} is taken by another program; "
                f"stop that, or choose another port with {variable}"
            )
    with _log(settings, service.name).open("ab") as log:
        try:
            process = subprocess.Popen(
                [str(part) for part in service.argv],
                cwd=ROOT,
                env=dict(service.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise StackError(
                f"{service.name}: {service.argv[0]} is not there; "
                f"install {service.needs or 'it'} (make setup)"
            ) from None
    port = settings.ports[service.port] if service.port else None
    record = {
        "name": service.name,
        "pid": process.pid,
        "started": _start_time(process.pid),
        "booted": _boot(),
        "address": f"{LOOPBACK}:{port}" if port else "",
        "patience": service.patience,
    }
    _file(settings, service.name).write_text(json.dumps(record))
    return process


def _end_group(group: int) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
        if wait_until(lambda: not _group_members(group), 5.0):
            return


def _read(settings: Settings, name: str) -> Running | None:
    path = _file(settings, name)
    return _parse(path) if path.exists() else None


def _parse(path: Path) -> Running:
    try:
        return Running(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise StackError(f"{path}: is damaged ({error}); remove it") from error


def _file(settings: Settings, name: str) -> Path:
    return settings.folder("run") / f"{name}.json"


def _log(settings: Settings, name: str) -> Path:
    return settings.folder("logs") / f"{name}.log"


def _tail(settings: Settings, name: str) -> str:
    path = _log(settings, name)
    lines = path.read_text(errors="replace").splitlines()[-_TAIL_LINES:] if path.exists() else []
    return f"the end of {path}:\n" + "\n".join(f"  {line}" for line in lines)


def _boot() -> str:
    """The id of this start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_time(pid: int) -> str:
    """The process's start in clock ticks since boot; empty if it has ended."""
    fields = _stat(pid)
    return "" if not fields or fields[0] in "ZX" else fields[19]


def _group_members(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields and fields[2] == str(group) and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the state on; the name before may hold spaces."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []

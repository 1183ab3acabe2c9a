"""The parent of the worker processes: starts them, and finds out what they died of.

A handler can take its process down: a segmentation fault, the kernel's out-of-memory
killer, a call that never returns. The parent sees the death, reads the flight recorder, and
starts a successor. The successor first writes to the task's row which item it was, so that the
item is not run forever. It also ends the dead process's other leases: none has to run out.
The parent imports nothing heavy, and makes no request itself.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from slurm_worker.backends.clock import boot_time
from slurm_worker.errors import ErrorClass, ServiceError
from slurm_worker.execution.flight_recorder import HangDetector, Record, Recorder
from slurm_worker.node.slurm_job import STOP_SIGNALS, WorkerExit
from slurm_worker.printable import printable
from slurm_worker.private import is_ours, new_folder
from slurm_worker.protocol.task_history import Crash

_TICK_S = 0.1
_MOST_RESTARTS = 100
#: After so many processes in a row that died young and without a task, no more are started.
_MOST_FAILED_STARTS = 3
_YOUNG_S = 60.0
_PR_SET_PDEATHSIG = 1
_OOM_COUNTERS = ("memory.events", "memory.oom_control")


@dataclass(frozen=True, slots=True)
class Death:
    """What a dead process was doing, for its successor to report."""

    owner: str  #: of its leases
    task: str  #: that it ran; empty where it ran none
    attempt: int  #: of the task
    crash: Crash  #: how it died on the task
    #: (task, attempt) of each other lease: of the next task, or of one that it committed
    leases: tuple[tuple[str, int], ...] = ()


#: Runs one worker process: scratch folder, recorder, number, the death before; an exit code.
Child = Callable[[Path, Recorder, int, "Death | None"], int]


@dataclass
class _Process:
    number: int
    pid: int
    folder: Path
    recorder: Recorder
    watch: HangDetector
    began: float
    hung: bool = False
    oom_kills: int = 0


class Supervisor:
    """Keeps `processes` worker processes running until they end by themselves.

    Each runs `child` with its own folder in `scratch`, which is node-local.
    """

    def __init__(self, child: Child, processes: int, scratch: Path) -> None:
        self._child, self._count = child, processes
        self._scratch = self._base = scratch
        self._prefix = f"slurm-worker-{os.getuid()}-"
        self._processes: dict[int, _Process] = {}
        self._stopping, self._restarts = False, 0
        #: By number: processes in a row that died young and without a task.
        self._failed_starts: dict[int, int] = {}

    def run(self) -> int:
        """Run the processes; return the worst exit code. A ServiceError if scratch is unusable."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._forward)
        try:
            # For this supervisor alone; its name holds our process id, for `_sweep`.
            self._base = new_folder(self._scratch, f"{self._prefix}{os.getpid()}-")
        except OSError as error:
            raise _unusable(self._scratch, error) from error
        self._sweep()
        code = 0
        try:
            for index in range(self._count):
                self._start(index, None)
            while self._processes:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    self._kill_hung()
                    time.sleep(_TICK_S)
                elif pid in self._processes:
                    code = max(code, self._ended(self._processes.pop(pid), status))
        finally:
            shutil.rmtree(self._base, ignore_errors=True)
        return code

    def _sweep(self) -> None:
        """Remove the folders of our workers that were killed on this node."""
        for folder in self._scratch.glob(f"{self._prefix}*"):
            pid = folder.name.removeprefix(self._prefix).partition("-")[0]
            if is_ours(folder) and pid.isdigit() and not _is_there(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)

    def _start(self, index: int, death: Death | None) -> None:
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{index}-", dir=self._base))
            recorder = Recorder(folder / "recorder")
        except OSError as error:
            raise _unusable(self._scratch, error) from error
        _flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            _end_with(parent)
            # Threads that a handler has left behind must not keep the process alive.
            os._exit(_run(self._child, folder, recorder, index, death))
        self._processes[pid] = _Process(
            index, pid, folder, recorder, HangDetector(), boot_time(), oom_kills=_oom_kills()
        )

    def _ended(self, process: _Process, status: int) -> int:
        code = os.waitstatus_to_exitcode(status)
        record = process.recorder.read()
        shutil.rmtree(process.folder, ignore_errors=True)
        if code in tuple(WorkerExit):
            return code
        _say(f"a process ended with {code} during {record}")
        self._restarts += 1
        death = _death(process, record, code)
        if self._stopping or self._restarts > _MOST_RESTARTS or self._is_hopeless(process, death):
            return WorkerExit.INFRASTRUCTURE
        self._start(process.number, death)
        return 0

    def _is_hopeless(self, process: _Process, death: Death | None) -> bool:
        """Whether another start would end like the last ones: before there is a task."""
        young = death is None and boot_time() - process.began < _YOUNG_S
        count = self._failed_starts.get(process.number, 0) + 1 if young else 0
        self._failed_starts[process.number] = count
        if count < _MOST_FAILED_STARTS:
            return False
        _say(f"{count} processes in a row died before they had a task; no more are started")
        return True

    def _kill_hung(self) -> None:
        now = boot_time()
        for process in self._processes.values():
            if not process.hung and process.watch.hangs(process.recorder.read(), now):
                process.hung = True
                os.kill(process.pid, signal.SIGKILL)

    def _forward(self, number: int, _frame: object) -> None:
        self._stopping = True
        for pid in list(self._processes):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _unusable(scratch: Path, error: OSError) -> ServiceError:
    return ServiceError(f"scratch {scratch}: {error}; name another folder with TMPDIR or --scratch")


def _is_there(pid: int) -> bool:
    """Whether a process has this id, ours or not."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _run(child: Child, folder: Path, recorder: Recorder, number: int, death: Death | None) -> int:
    try:
        code = child(folder, recorder, number, death)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    _flush()
    return code


def _say(line: str) -> None:
    with suppress(OSError):
        print(printable(f"slurm-worker: {line}"), file=sys.stderr)  # noqa: T201


def _flush() -> None:
    """Write what is buffered; if the disk is full, it is lost, and the workers continue."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()


def _death(process: _Process, record: Record, code: int) -> Death | None:
    leases = tuple(lease for lease in record.leases if lease != (record.task, record.attempt))
    if not record.task and not leases:
        return None
    error_class = ErrorClass.WORKER_CRASH
    if process.hung:
        error_class = ErrorClass.TIMEOUT
    elif code == -signal.SIGKILL and _oom_kills() > process.oom_kills:
        error_class = ErrorClass.OUT_OF_MEMORY
    crash = Crash(error_class, record.position)
    return Death(record.owner, record.task, record.attempt, crash, leases)


def _end_with(parent: int) -> None:
    """Make the kernel send this process SIGTERM when its parent dies."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):
        return  # not Linux
    if os.getppid() != parent:
        os._exit(WorkerExit.INFRASTRUCTURE)


def _oom_kills() -> int:
    """Processes that the kernel's out-of-memory killer ended in our control groups."""
    kills, groups = 0, ""
    with suppress(OSError):
        groups = Path("/proc/self/cgroup").read_text()
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            for name in _OOM_COUNTERS:
                with suppress(OSError):
                    text = Path(f"/sys/fs/cgroup/{controllers}/{path}/{name}").read_text()
                    kills += sum(map(int, re.findall(r"^oom_kill (\d+)$", text, re.MULTILINE)))
    return kills

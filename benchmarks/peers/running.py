"""One run: start the driver, watch it, kill one process, and report the result."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.peers import processes
from benchmarks.peers.contenders import SHARED, Contender, jobs_of
from benchmarks.peers.counting import Counts, Pace, counts, pace
from benchmarks.peers.ours import work

LIMIT_S = 240.0
#: Between two checks: they use time of the machine that is measured.
_LOOK_S = 0.2
_GONE_S = 30.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one run.

    Args:
        who: the contender.
        killed: ``nobody``, ``worker`` or ``driver``.
        items: their number.
        pace: start-up and rates.
        counts: missing, doubled, redone.
        driver_mb: the most that the driver's processes had at once.
        worker_mb: the peak of the largest process that ran the handler.
        problem: how its driver failed or was stopped, or that no process was killed.
        took_s: from the command until all was done.
        missing_again: items that were missing after a worker's death and are still missing
            after the command was run again.
    """

    who: str
    killed: str
    items: int
    pace: Pace
    counts: Counts
    driver_mb: float
    worker_mb: float
    problem: str = ""
    took_s: float = 0.0
    missing_again: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """A document for JSON; NaN becomes None."""
        document = asdict(self)
        for name, value in document["pace"].items():
            document["pace"][name] = None if math.isnan(value) else round(value, 2)
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Report:
        """The report of a document from `to_dict`."""
        rates = {
            name: math.nan if value is None else value for name, value in document["pace"].items()
        }
        return cls(**{**document, "pace": Pace(**rates), "counts": Counts(**document["counts"])})


@dataclass
class Watch:
    """Checks a run's processes while its driver is running.

    Args:
        folder: the folder of the run.
        items: their number.
    """

    folder: Path
    items: int
    driver_mb: float = 0.0
    worker_mb: float = 0.0

    def look(self, driver: int) -> None:
        """Check once."""
        family = processes.tree(driver)
        self.driver_mb = max(self.driver_mb, sum(map(processes.resident_mb, family)))
        for pid in processes.at_work(self.folder / "executions"):
            if pid != driver:
                self.worker_mb = max(self.worker_mb, processes.resident_mb(pid, "VmHWM"))

    def executed(self) -> int:
        """How often the handler was started; all keys have the same length."""
        size = 0
        for log in (self.folder / "executions").glob("*.log"):
            size += log.stat().st_size
        return size // len(f"{work().item(0)['id']}\n")


def run(contender: Contender, items: int, killed: str, say: Say) -> Report:
    """Run to the end; kill -9 the worker, the driver or nobody when half of the items are done."""
    with _folder(contender) as folder:
        watch, driver = Watch(folder, items), _Driver(contender, folder, items)
        began = time.time()
        driver.start()
        problem = _follow(driver, watch, killed, say)
        ended = time.time()
        # Jobs that Slurm still runs must not change the counts.
        _clean(contender, folder)
        report = _report(contender, killed, watch, (began, ended), problem)
        if report.counts.missing and killed == "worker":
            say(f"{report.counts.missing:,} items are missing: the same command again")
            driver.start()
            _follow(driver, watch, "nobody", say)
            _clean(contender, folder)
            again = _report(contender, killed, watch, (began, ended), "").counts.missing
            report = replace(report, missing_again=again)
        return report


def _follow(driver: _Driver, watch: Watch, killed: str, say: Say) -> str:
    """Watch until the driver ends, and kill once; return what went wrong."""
    deadline = time.monotonic() + LIMIT_S
    due = killed != "nobody"
    while driver.alive():
        watch.look(driver.pid)
        if due and watch.executed() >= watch.items // 2:
            due = not _strike(killed, driver, watch, say)
        if time.monotonic() > deadline:
            driver.kill()
            return f"the run was stopped after {LIMIT_S:.0f} s"
        time.sleep(_LOOK_S)
    if driver.code:
        return f"its driver exited with code {driver.code}: {driver.last_words()}"
    return f"the run was done before the {killed} could be killed" if due else ""


class _Driver:
    """The contender's command, which can be started several times."""

    def __init__(self, contender: Contender, folder: Path, items: int) -> None:
        self._folder = folder
        self._log = folder / "state" / "driver.log"
        self._command = contender.command(folder, items)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def code(self) -> int | None:
        return None if self._process is None else self._process.returncode

    def start(self) -> None:
        environment = {
            **os.environ,
            processes.VARIABLE: str(self._folder),
            "PYTHONPATH": str(SHARED),
            # As in an activated environment: some tools start their own programs by name.
            "PATH": f"{Path(self._command[0]).parent}{os.pathsep}{os.environ['PATH']}",
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "no output"


def _strike(killed: str, driver: _Driver, watch: Watch, say: Say) -> bool:
    """Kill the worker, or kill and restart the driver; False if there was no process to kill."""
    if killed == "driver":
        say(f"kill -9 of the driver ({driver.pid}) after {watch.executed():,} items")
        driver.kill()
        driver.start()
        return True
    for pid in processes.at_work(watch.folder / "executions"):
        if processes.kill(pid, watch.folder):
            say(f"kill -9 of a worker ({pid}) after {watch.executed():,} items")
            return True
    return False


def _report(
    contender: Contender, killed: str, watch: Watch, times: tuple[float, float], problem: str
) -> Report:
    found = list(contender.results(watch.folder))
    logs = sorted((watch.folder / "executions").glob("*.log"))
    return Report(
        who=contender.name,
        killed=killed,
        items=watch.items,
        pace=pace(*times, [(each.at, len(each.keys)) for each in found]),
        counts=counts(
            (str(work().item(number)["id"]) for number in range(watch.items)),
            (key for each in found for key in each.keys),
            (key for log in logs for key in log.read_text().splitlines()),
        ),
        driver_mb=round(watch.driver_mb, 1),
        worker_mb=round(watch.worker_mb, 1),
        problem=problem,
        took_s=round(times[1] - times[0], 1),
    )


@contextmanager
def _folder(contender: Contender) -> Iterator[Path]:
    """A folder that the nodes, the driver and the cluster's ordinary user share."""
    word = contender.name.split()[0].lower()
    folder = Path(tempfile.gettempdir()) / f"peers-{word}-{uuid.uuid4().hex[:8]}"
    for each in (folder, *(folder / name for name in ("results", "executions", "state"))):
        each.mkdir()
        each.chmod(0o777 if each.name == "executions" else 0o755)
    try:
        yield folder
    finally:
        _clean(contender, folder)
        shutil.rmtree(folder, ignore_errors=True)


def _clean(contender: Contender, folder: Path) -> None:
    """Remove what is left of the run in Slurm and on the machine."""
    deadline = time.monotonic() + _GONE_S
    with contextlib.suppress(subprocess.SubprocessError):
        contender.cancel(folder)
        while jobs_of(folder.name) and time.monotonic() < deadline:
            time.sleep(0.5)  # Slurm takes a while to end a cancelled job
    processes.end(folder)

"""The embedded cluster's one long process: it starts, watches and ends elements.

A file lock allows at most one per folder. It ends when nothing is left. If it is killed, nobody
knows how its elements end: the next supervisor kills them and records NODE_FAIL, as Slurm does
for a lost node.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from airflow_slurm_provider.slurm.embedded.commands import Store, expand, try_lock

_TICK_S = 0.05
_LOCK_WAIT_S = 2.0


class EmbeddedSupervisor:
    """Runs the elements of one folder, `slots` at a time."""

    def __init__(self, store: Store, slots: int, kill_wait: float) -> None:
        self._store, self._db = store, store.db
        self._slots, self._kill_wait = slots, kill_wait
        self._children: dict[tuple[int, int], subprocess.Popen[bytes]] = {}

    def run(self) -> None:
        """Run elements until none is left."""
        with (self._store.folder / "supervisor.lock").open("w") as lock:
            deadline = time.monotonic() + _LOCK_WAIT_S
            while not try_lock(lock.fileno()):
                # Another process tests the lock, or there is a supervisor.
                if time.monotonic() > deadline:
                    return
                time.sleep(_TICK_S)
            self._bury()
            while True:
                self._reap()
                self._fulfil_wishes()
                self._watch_limits()
                self._start_waiting()
                if not self._store.anything_left():
                    with self._store.transaction():
                        if not self._store.anything_left():
                            lock.close()
                            return
                time.sleep(_TICK_S)

    def _start_waiting(self) -> None:
        if len(self._children) >= self._slots:
            return
        for job, element, throttle in self._db.execute(
            "SELECT e.job, e.element, j.throttle FROM elements e JOIN jobs j ON j.id = e.job "
            "WHERE e.state = 'PENDING' AND e.wish = '' AND j.begin <= ? "
            "ORDER BY e.job, e.element",
            (time.time(),),
        ).fetchall():
            running = sum(1 for other, _ in self._children if other == job)
            if not throttle or running < throttle:
                self._start(job, element)
            if len(self._children) >= self._slots:
                return

    def _start(self, job: int, element: int) -> None:
        name, cwd, output, size, text, raw_id, restarts = self._db.execute(
            "SELECT j.name, j.cwd, j.output, j.size, j.environment, e.raw_id, e.restarts "
            "FROM jobs j JOIN elements e ON e.job = j.id WHERE j.id = ? AND e.element = ?",
            (job, element),
        ).fetchone()
        environment = {
            **json.loads(text),
            "SLURM_JOB_ID": str(raw_id),
            "SLURM_JOB_NAME": name,
            "SLURM_ARRAY_JOB_ID": str(job),
            "SLURM_ARRAY_TASK_ID": str(element),
            "SLURM_ARRAY_TASK_COUNT": str(size),
            "SLURM_SUBMIT_DIR": cwd,
            "SLURMD_NODENAME": "localhost",
            # Absent on the first start, as in Slurm.
            **({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}),
        }
        target = expand(
            output, {"%A": str(job), "%a": str(element), "%j": str(raw_id), "%x": name, "%%": "%"}
        )
        try:
            with (Path(cwd) / target).open("ab") as log:
                child = subprocess.Popen(
                    ["/bin/bash", str(self._store.script(job))],
                    cwd=cwd,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            print(f"{job}_{element} can't start: {error}", file=sys.stderr, flush=True)  # noqa: T201
            self._end(job, element, "FAILED", "1:0")
            return
        self._children[job, element] = child
        pid, now = child.pid, time.time()
        self._set(job, element, state="RUNNING", pid=pid, born=_born(pid), started=now, warned=0)

    def _reap(self) -> None:
        for (job, element), child in list(self._children.items()):
            code = child.poll()
            if code is None:
                continue
            del self._children[job, element]
            # Processes that the element left running end with it.
            _signal(child.pid, signal.SIGKILL)
            wish, restarts = self._db.execute(
                "SELECT wish, restarts FROM elements WHERE job = ? AND element = ?", (job, element)
            ).fetchone()
            if wish == "requeue":
                again = restarts + 1
                self._set(job, element, state="PENDING", wish="", asked=None, restarts=again)
                continue
            ended = {"cancel": "CANCELLED", "limit": "TIMEOUT"}.get(wish)
            state = ended or ("COMPLETED" if code == 0 else "FAILED")
            self._end(job, element, state, f"0:{-code}" if code < 0 else f"{code}:0")

    def _fulfil_wishes(self) -> None:
        for job, element, wish, asked in self._db.execute(
            "SELECT job, element, wish, asked FROM elements "
            "WHERE wish <> '' AND state IN ('PENDING', 'RUNNING')"
        ).fetchall():
            child = self._children.get((job, element))
            if child is None:
                if wish == "cancel":
                    self._end(job, element, "CANCELLED", "0:0")
                else:
                    self._set(job, element, wish="")
            elif asked is None:
                _signal(child.pid, signal.SIGTERM)
                self._set(job, element, asked=time.time())
            elif time.time() - asked > self._kill_wait:
                _signal(child.pid, signal.SIGKILL)

    def _watch_limits(self) -> None:
        for job, element, started, warned, limit, grace in self._db.execute(
            "SELECT e.job, e.element, e.started, e.warned, j.limit_s, j.grace_s FROM elements e "
            "JOIN jobs j ON j.id = e.job WHERE e.state = 'RUNNING' AND j.limit_s > 0 "
            "AND e.wish = ''"
        ).fetchall():
            left = started + limit - time.time()
            if left <= 0:
                self._store.wish("limit", f"{job}_{element}")
            elif left <= grace and not warned:
                _signal(self._children[job, element].pid, signal.SIGUSR1)
                self._set(job, element, warned=1)

    def _bury(self) -> None:
        for job, element, pid, born in self._db.execute(
            "SELECT job, element, pid, born FROM elements WHERE state = 'RUNNING'"
        ).fetchall():
            # Another process may have its number by now.
            if born and born == _born(pid):
                _signal(pid, signal.SIGKILL)
            self._end(job, element, "NODE_FAIL", "0:0")

    def _end(self, job: int, element: int, state: str, exit_code: str) -> None:
        self._set(job, element, state=state, exit_code=exit_code, wish="")
        # The environment may hold credentials: it is forgotten with the last element.
        self._db.execute(
            "UPDATE jobs SET environment = '{}' WHERE id = ? AND NOT EXISTS (SELECT 1 FROM "
            "elements WHERE job = ? AND state IN ('PENDING', 'RUNNING'))",
            (job, job),
        )

    def _set(self, job: int, element: int, **values: str | float | None) -> None:
        names = ", ".join(f"{name} = ?" for name in values)
        self._db.execute(
            f"UPDATE elements SET {names} WHERE job = ? AND element = ?",  # noqa: S608  our names
            (*values.values(), job, element),
        )


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _born(pid: int) -> str | None:
    """Distinguishes a process from a later one with the same number; None without /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # Field 22, counted from behind the name, which may hold anything.
    return f"{boot}/{stat.rpartition(')')[2].split()[19]}"


def main(argv: list[str]) -> int:
    """Supervise ``FOLDER``."""
    slots, kill_wait = os.environ["EMBEDDED_SLOTS"], os.environ["EMBEDDED_KILL_WAIT"]
    EmbeddedSupervisor(Store(Path(argv[0])), int(slots), float(kill_wait)).run()
    return 0

"""The life of a worker: lease a task, run it, commit it, take the next; drain when told.

Workers are interchangeable and keep nothing: whichever dies, another leases its task
once the lease has run out. Requests per task beside heartbeats: one read of the job's
row, one page of task rows, claim, slice, part(s), marker, complete.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from slurm_worker.config import JobConfig
from slurm_worker.errors import (
    ErrorClass,
    FatalError,
    ServiceError,
    UserError,
    classify,
    describe,
)
from slurm_worker.finder import Finished, Found, TaskFinder
from slurm_worker.handlers import Context, Fetcher, load
from slurm_worker.heart import Heart
from slurm_worker.jobs import JobTable
from slurm_worker.journal import Journal
from slurm_worker.keys import JobPaths, JobState
from slurm_worker.limits import RateLimiter
from slurm_worker.parts import ERRORS_SUFFIX, ROWS_SUFFIX, write_part
from slurm_worker.ports import Clock, ObjectStore, Rows
from slurm_worker.runner import Runner
from slurm_worker.store import JobStore, Marker, Part
from slurm_worker.table import Lease, TaskTable

EXIT_OK = 0
EXIT_CONFIG = 3  #: nothing of this job can run on this node: a mistake in the job
EXIT_INFRASTRUCTURE = 75  #: the node or a service failed; another worker may succeed

_IDLE_FIRST_S = 0.2
_IDLE_MOST_S = 5.0
_SERVICE_FAILURES = 5
_STARTS_PER_S = 500


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this worker is; new with each start of the process, so a requeued twin differs.

    Args:
        worker: the worker's id.
        submission: the submission that started it, such as ``000-1``.
        slurm: Slurm's ids and the node.
    """

    worker: str
    submission: str
    slurm: dict[str, str]

    @classmethod
    def from_environment(cls, environment: dict[str, str], submission: str, host: str) -> Identity:
        """Read Slurm's variables; outside Slurm the host stands for them."""
        array = environment.get("SLURM_ARRAY_JOB_ID") or environment.get("SLURM_JOB_ID", "")
        element = environment.get("SLURM_ARRAY_TASK_ID", "0")
        restart = environment.get("SLURM_RESTART_COUNT") or "0"
        name = f"{array}_{element}-r{restart}" if array else host
        slurm = {
            "array": array,
            "element": element if array else "",
            "restart": restart if array else "",
            "node": environment.get("SLURMD_NODENAME", host),
        }
        return cls(f"{name}-{uuid.uuid4().hex[:8]}", submission, slurm)


class Drain:
    """The wish to stop, set by signals; a signal handler does nothing else."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.before_time_limit = False

    def install(self) -> None:
        """Listen to TERM (cancel, preemption) and USR1 (the time limit is near)."""
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, self._ask)
        signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, number: int, _frame: object) -> None:
        if number == signal.SIGUSR1:
            self.before_time_limit = True
        self.asked.set()


class Worker:
    """One worker process.

    Args:
        config: the job.
        identity: who we are.
        rows: the table.
        buckets: gives the store of a bucket.
        clock: AWS time.
        scratch: an empty node-local folder of this worker.
        logger: writes JSON lines.
        ids: fields that the logger adds to each line.
        drain: the wish to stop.
        rng: jitter and random picks.
    """

    def __init__(
        self,
        config: JobConfig,
        identity: Identity,
        *,
        rows: Rows,
        buckets: Callable[[str], ObjectStore],
        clock: Clock,
        scratch: Path,
        logger: logging.Logger,
        ids: dict[str, object],
        drain: Drain,
        rng: random.Random,
    ) -> None:
        self.config = config
        self.identity = identity
        self.logger = logger
        self._ids = ids
        self._clock = clock
        self._scratch = scratch
        self._drain = drain
        self._rng = rng
        self._buckets = buckets
        paths = JobPaths(config.prefix, config.job_id)
        self._store = JobStore(buckets(config.bucket), paths)
        self._jobs = JobTable(rows, config.job_id, clock)
        self._table = TaskTable(rows, config.job_id, config.shards, config.lease, clock)
        self._finder = TaskFinder(self._table, identity.worker, clock, rng)
        self._limiters = {
            limit.name: RateLimiter(rows, limit, config.max_workers, clock, rng)
            for limit in config.limits
        }
        self._heart: Heart | None = None
        self._service_failures = 0
        self.tasks_done = 0

    def run(self) -> int:
        """Work until nothing is left, or until asked to stop; return the exit code."""
        # A mass start spreads over workers/500 seconds.
        self._clock.sleep(self._rng.uniform(0, self.config.max_workers / _STARTS_PER_S))
        runner = self._start_runner()
        try:
            return self._loop(runner)
        finally:
            runner.close()
            self.logger.info("worker ends", extra={"tasks_done": self.tasks_done})

    def _start_runner(self) -> Runner:
        handler = load(self.config.handler, self._store.objects, self._store.paths, self._scratch)
        context = Context(
            job=self.config.job_id,
            params=self.config.handler.params,
            logger=self.logger,
            scratch=self._scratch,
            fetcher=Fetcher(self._buckets, self._scratch / "fetched"),
            take_token=self._take_tokens,
        )
        if handler.setup is not None:
            context = replace(context, state=self._set_up(handler.setup, context))
        runner = Runner(
            handler.handle,
            context,
            self.config.worker,
            self._limiters,
            self._must_stop,
            self._clock,
            self._rng,
        )
        self.logger.info("worker starts", extra={"handler": self.config.handler.entry})
        return runner

    def _set_up(self, setup: Callable[[Context], object], context: Context) -> object:
        try:
            return setup(context)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"handler: setup() failed: {describe(error)}; the worker's log has the traceback"
            ) from error

    def _take_tokens(self, name: str | None) -> None:
        """Wait for one token of the limit `name`, or of every limit."""
        chosen = self._limiters.values() if name is None else [self._limiters[name]]
        for limiter in chosen:
            limiter.acquire(self._must_stop)

    def _loop(self, runner: Runner) -> int:
        last_found = self._clock.boot_time()
        idle_s = _IDLE_FIRST_S
        while not self._drain.asked.is_set():
            try:
                lease = self._next_lease()
                if lease is None:
                    if self._clock.boot_time() - last_found > self._patience_s:
                        self.logger.info("live workers hold what is left")
                        return EXIT_OK
                    self._drain.asked.wait(idle_s * self._rng.uniform(0.8, 1.2))
                    idle_s = min(idle_s * 1.5, _IDLE_MOST_S)
                    continue
                if isinstance(lease, Finished):
                    return EXIT_OK
                last_found, idle_s = self._clock.boot_time(), _IDLE_FIRST_S
                self._work(lease, runner)
                self._service_failures = 0
            except FatalError as error:
                self._jobs.stop(f"{describe(error)} (worker {self.identity.worker})")
                self._jobs.audit(self.identity.worker, "stopped", {"reason": describe(error)})
                self.logger.error("the handler stopped the job", extra={"error": describe(error)})
                return EXIT_CONFIG
            except ServiceError as error:
                if not self._survive(error):
                    return EXIT_INFRASTRUCTURE
        self._ask_for_requeue()
        return EXIT_OK

    @property
    def _patience_s(self) -> float:
        """How long to wait for leases that may run out, before live workers must hold them."""
        times = self.config.lease
        return times.ttl_s + times.margin_s + 2 * times.heartbeat_s

    def _next_lease(self) -> Lease | Finished | None:
        job = self._jobs.find(consistent=False)
        if job is not None and job.stop:
            self.logger.warning("the job is stopped", extra={"reason": job.stop})
            return Finished()
        if job is None or job.state is JobState.PLANNING:
            return None
        self._finder.new_rounds(job.rounds)
        result = self._finder.next()
        if isinstance(result, Found):
            return result.lease
        return result if isinstance(result, Finished) else None

    def _must_stop(self) -> bool:
        heart = self._heart
        return self._drain.asked.is_set() or (heart is not None and not heart.holds)

    def _work(self, lease: Lease, runner: Runner) -> None:
        """One task, from its lease to its marker."""
        self._ids.update(task=lease.task, attempt=lease.attempt)
        started = self._clock.now()
        folder = self._scratch / f"{lease.task}-a{lease.attempt}"
        try:
            if lease.attempt > 1 and (marker := self._store.marker(lease.task)) is not None:
                # A former attempt committed and died before it said so.
                self._table.complete(marker)
                return
            items = self._store.read_slice(lease.row.round_no, lease.row.where)
            folder.mkdir()
            journal = Journal(folder / "journal.sqlite")
            with self._watch(lease, journal) as heart:
                finished = runner.run(items, lease.attempt, journal)
                if not heart.holds:
                    self.logger.warning("the lease was lost; this attempt is discarded")
                elif finished:
                    self._commit(lease, journal, folder, started)
                else:
                    self._table.release(lease)
                    self.logger.info("lease released", extra={"items_done": journal.ok})
        except (UserError, OSError, sqlite3.OperationalError) as error:
            self._give_up(lease, error)
        except FatalError:
            self._table.release(lease)
            raise
        finally:
            self._heart = None
            shutil.rmtree(folder, ignore_errors=True)
            self._ids.update(task="", attempt=0)

    def _watch(self, lease: Lease, journal: Journal) -> Heart:
        heart = Heart(
            self._table,
            lease,
            lambda: (journal.ok, journal.failed),
            self._clock,
            self._rng,
            self.logger,
            self.config.lease.stall_s,
        )
        self._heart = heart
        return heart

    def _commit(self, lease: Lease, journal: Journal, folder: Path, started: float) -> None:
        """Upload, create the marker, complete the row: in this order, whatever dies between."""
        parts = self._upload_parts(lease, journal, folder)
        ours = Marker(
            job=self.config.job_id,
            task=lease.task,
            attempt=lease.attempt,
            worker=self.identity.worker,
            items=lease.row.where.count,
            ok=journal.ok,
            rows=sum(part.rows for part in parts if part.kind == "rows"),
            failed=journal.failed_by_class(),
            parts=parts,
            input_sha256=lease.row.where.sha256,
            handler=self.config.handler.entry,
            code_sha256=self.config.handler.code_sha256,
            slurm=self.identity.slurm,
            started=round(started, 3),
            finished=round(self._clock.now(), 3),
        )
        journal.close()
        standing = self._store.commit(ours)
        self._table.complete(standing)
        won = standing.attempt == lease.attempt
        self.tasks_done += won
        self.logger.info(
            "task committed" if won else "another attempt had committed this task",
            extra={"items_ok": standing.ok, "failed": standing.failed, "rows": standing.rows},
        )

    def _upload_parts(self, lease: Lease, journal: Journal, folder: Path) -> tuple[Part, ...]:
        unique = uuid.uuid4().hex[:12]
        parts = []
        for kind, suffix in (("rows", ROWS_SUFFIX), ("errors", ERRORS_SUFFIX)):
            if kind == "errors" and not journal.failed:
                continue
            path = folder / suffix
            lines = write_part(journal, path, failed=kind == "errors")
            key = self._store.paths.part(lease.task, lease.attempt, unique, suffix)
            parts.append(self._store.upload_part(key, path, kind, lines))
        return tuple(parts)

    def _give_up(self, lease: Lease, error: Exception) -> None:
        """The task can't be run here: say why on its row, for another try elsewhere."""
        if isinstance(error, UserError):
            error_class = ErrorClass.BAD_INPUT
        elif isinstance(error, sqlite3.Error):
            # The journal is ours: what SQLite can't do, this node's scratch disk can't.
            error_class = ErrorClass.NODE_FAILURE
        else:
            error_class = classify(error)
        self.logger.error("task failed", extra={"error": describe(error)}, exc_info=error)
        delay = self._rng.uniform(0, min(60.0, 2.0 ** (lease.row.tries + 1)))
        self._table.fail(lease, error_class, describe(error), delay)

    def _survive(self, error: ServiceError) -> bool:
        """Wait after a service failed; False when it has failed too often in a row.

        The task at hand, if any, is left to its lease: whether its marker exists is
        for the next holder to see.
        """
        self._service_failures += 1
        self.logger.warning(
            "a service failed", extra={"error": str(error), "in_a_row": self._service_failures}
        )
        if self._service_failures >= _SERVICE_FAILURES:
            return False
        self._drain.asked.wait(self._rng.uniform(0, 2.0**self._service_failures))
        return True

    def _ask_for_requeue(self) -> None:
        """Before the time limit: have Slurm start this element again, as work is left."""
        if not self._drain.before_time_limit or not self.identity.slurm["array"]:
            return
        slurm = self.identity.slurm
        element = f"{slurm['array']}_{slurm['element']}"
        result = subprocess.run(
            ["scontrol", "requeue", element], capture_output=True, text=True, check=False
        )
        self.logger.info(
            "requeue asked", extra={"code": result.returncode, "error": result.stderr.strip()}
        )


def read_config(data: bytes | None, key: str) -> JobConfig:
    """The job's resolved configuration.

    Raises:
        UserError: if it is not there or was written by another release.
    """
    if data is None:
        raise UserError(f"--config: there is no object {key!r}; submit the job again")
    try:
        return JobConfig.from_json(data)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(
            f"--config: {key!r} was written by another release ({error}); submit the job again"
        ) from error

"""The life of a worker: lease a task, run it, commit it, take the next; drain when told.

Workers are interchangeable and keep nothing: whichever dies, another leases its task
once the lease has run out. The three parts of a task overlap with its neighbours':

    lease, fetch   ─A──B────────C────────D─
    run items      ────A═══════B════════C══
    commit         ────────────A────────B──

The next task is leased only when this one is nearly done, so that no worker sits on work
that another could begin. Requests per task beside heartbeats: one read of the job's row,
one page of task rows, claim; and those of `attempts.py`.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from slurm_worker.backends.request_counter import RequestCounts
from slurm_worker.errors import FatalError, ServiceError, UserError, describe
from slurm_worker.execution.calls import Calls, Runner
from slurm_worker.execution.flight_recorder import Recorder
from slurm_worker.execution.handler import (
    Fetcher,
    Handler,
    HandlerResources,
    load,
    set_up,
    tear_down,
)
from slurm_worker.execution.runner import make_runner
from slurm_worker.execution.throttle import TokenThrottle
from slurm_worker.node.attempts import Attempt, Attempts
from slurm_worker.node.backoff import Durations, Idle, Setbacks
from slurm_worker.node.exit_codes import EXIT_CONFIG, EXIT_INFRASTRUCTURE, EXIT_NO_PROGRESS, EXIT_OK
from slurm_worker.node.heartbeat import Heartbeat
from slurm_worker.node.logging import bound
from slurm_worker.node.no_progress import Fruitless, NoProgress
from slurm_worker.node.slurm_job import Drain, Identity, requeue
from slurm_worker.node.task_finder import Finished, Found, TaskFinder
from slurm_worker.node.threads import Pending, Signal, Threads
from slurm_worker.protocol.audit_log import AuditLog
from slurm_worker.protocol.crashes import run_isolated
from slurm_worker.protocol.job_config import JobConfig
from slurm_worker.protocol.job_store import ForeignMarker, JobStore
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import JobPaths, JobState
from slurm_worker.protocol.ports import Clock, ObjectStore, Rows
from slurm_worker.protocol.shard_totals import Sums
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import TaskRow
from slurm_worker.protocol.time_checks import check_times
from slurm_worker.rate_limits.limiter import RateLimiter
from slurm_worker.results.journal import Journal, Outcome
from slurm_worker.results.parts import PARQUET, Columns, to_lines

#: A configuration's key holds the digest of what it must be.
_DIGEST = re.compile(r"/config/([0-9a-f]{64})\.json$")
_STARTS_PER_S = 500
_LOOK_AHEAD_S = 0.1
#: A worker that is asked to stop waits so long for the items at hand.
_DRAIN_S = 12.0


class Logger(Protocol):
    """structlog's bound logger, as far as the worker uses it."""

    def info(self, event: str, **fields: Any) -> Any:
        """Log a line."""

    def warning(self, event: str, **fields: Any) -> Any:
        """Log a line."""

    def error(self, event: str, **fields: Any) -> Any:
        """Log a line."""


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
        threads: for what goes on beside the items.
        drain: the wish to stop.
        rng: jitter and random picks.
        recorder: told what is being done.
        seconds_left: until Slurm ends this job; None if nobody knows.
        leave: ends the process at once, whatever its main thread is in.
        requests: what this process asks of AWS.
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
        logger: Logger,
        threads: Threads,
        drain: Drain,
        rng: random.Random,
        recorder: Recorder | None = None,
        seconds_left: float | None = None,
        leave: Callable[[], None] = lambda: None,
        requests: RequestCounts | None = None,
    ) -> None:
        self.config = config
        self.identity = identity
        self.logger = logger
        self.tasks_done = 0
        self._clock = clock
        self._scratch = scratch
        self._threads = threads
        self._drain = drain
        self._rng = rng
        self._recorder = recorder or Recorder()
        self._recorder.owner(identity.worker)
        self._leave = leave
        self._ended = threads.signal()
        self._buckets = buckets
        self.store = JobStore(buckets(config.bucket), JobPaths(config.prefix, config.job_id))
        self._jobs = JobTable(rows, config.job_id, clock)
        self._table = TaskTable(rows, config.job_id, config.shards, config.lease, clock)
        self._requests = requests
        self._trail = AuditLog(self._jobs, identity.worker, logger)
        sums = Sums(self.store, self._jobs, self._table)
        self._finder = TaskFinder(
            self._table,
            identity.worker,
            clock,
            rng,
            self._trail.note,
            sums.moved,
            self._disown,
        )
        self._pace = TokenThrottle(
            [
                RateLimiter(rows, limit, config.max_workers, clock, rng, self._trail.note)
                for limit in config.limits
            ],
            clock,
            self._must_stop,
            self._recorder,
        )
        self._durations = Durations(clock, seconds_left)
        self._idle = Idle(config.lease, config.max_workers, clock, rng, self._rest)
        self._setbacks = Setbacks(rng, self._rest)
        self._fruitless = Fruitless(rng, self._rest)
        #: Of this process: leases whose items were run, and items that came to their end.
        self._leases = self._items_ended = 0
        self._running: Attempt | None = None
        self._ahead: Pending[Attempt | Finished | None] | None = None
        self._committing: Pending[None] | None = None
        self._committed_from: Journal | None = None

    def run(self) -> int:
        """Work until nothing is left, or until asked to stop; return the exit code.

        Raises:
            UserError: if the job's code can't be run.
            ServiceError: if a service or the node's scratch fails at the start.
        """
        # A mass start spreads over workers/500 seconds.
        self._clock.sleep(self._rng.uniform(0, self.config.max_workers / _STARTS_PER_S))
        handler, shared = self._load()
        columns = self._columns()
        try:
            # While one task is committed from its journal, the next has the other.
            journals = [Journal(self._scratch / f"journal-{each}.sqlite") for each in "ab"]
        except sqlite3.Error as error:
            raise ServiceError(f"scratch {self._scratch}: {error}; see --scratch") from error
        calls = Calls(
            handler,
            shared,
            self.config.worker,
            self._pace,
            self._must_stop,
            self._clock,
            self._rng,
            self._recorder,
            columns.to_lines if columns else to_lines,
            self.config.rules,
        )
        heart = self._heart = Heartbeat(
            self._table, self._clock, self._rng, self.logger, self._threads, self._recorder
        )
        self._attempts = Attempts(
            self.config,
            self.identity,
            self.store,
            self._table,
            heart,
            self._clock,
            self._scratch,
            self.logger,
            self._rng,
            columns,
            self._requests,
            self._trail.note,
        )
        self.logger.info(
            "worker starts", handler=self.config.handler.entry, scratch=str(self._scratch)
        )
        watch = self._threads.start(self._watch_drain)
        try:
            return self._loop(calls, journals)
        finally:
            tear_down(handler, shared)
            self._pace.close()
            self._ended.set()
            self._drain.asked.set()
            watch.result()
            heart.close()
            self.logger.info("worker ends", tasks_done=self.tasks_done, **self._pace.numbers())

    # --- the handler ----------------------------------------------------------

    def _load(self) -> tuple[Handler, HandlerResources]:
        handler = load(self.config.handler, self.store.objects, self.store.paths, self._scratch)
        shared = HandlerResources(
            job=self.config.job_id,
            params=json.dumps(self.config.handler.params),
            logger=self.logger,
            scratch=self._scratch,
            fetcher=Fetcher(self._buckets, self._scratch / "fetched"),
            limiters=self._pace,
        )
        return handler, set_up(handler, shared)

    def _columns(self) -> Columns | None:
        """What writes Parquet parts; None if they are not wanted, or not to be had here."""
        if self.config.part_format != PARQUET:
            return None
        try:
            # Only now: the handler's requirements may have brought it.
            from slurm_worker.aggregate.job.parquet_part import ParquetColumns
        except ImportError as error:
            self.logger.warning("parts are JSON lines", reason=describe(error))
            return None
        return ParquetColumns(self.config.columns)

    # --- the end that is asked for ---------------------------------------------

    def _watch_drain(self) -> None:
        """Leave in time even if an item runs on: Slurm kills about 30 s after it asks.

        The item at hand is given up, and done again by whoever has the task next. Should
        it end at this very moment, both ways out are taken; the table lets one release.
        """
        self._drain.asked.wait()
        if self._ended.wait(_DRAIN_S):
            return
        running = self._running
        self.logger.warning("an item runs on; the worker leaves without it")
        try:
            if running is not None:
                worked_s = self._clock.boot_time() - running.hold.saved
                self._attempts.release(running, worked_s)
            if self._ahead is not None and self._ahead.done():
                self._return_ahead(self._ahead)
        except (ServiceError, OSError, sqlite3.Error) as error:
            self.logger.warning("not wound up; the lease will run out", error=describe(error))
        if self._wants_requeue():
            self._ask_for_requeue()
        self._pace.close()
        self._leave()

    # --- the loop -------------------------------------------------------------

    def _loop(self, calls: Calls, journals: list[Journal]) -> int:
        plain, careful = make_runner(calls), make_runner(calls, careful=True)
        self._idle.over()
        code = EXIT_OK
        try:
            while not self._drain.asked.is_set():
                try:
                    found = self._next()
                    if isinstance(found, Finished):
                        break
                    if found is None and self._committing is not None:
                        # Our own last task may be all that is left.
                        self._finish_commit()
                        continue
                    if found is None:
                        if not self._idle.wait():
                            self.logger.info("live workers hold what is left")
                            break
                        continue
                    runner = careful if run_isolated(found.lease.row.crashes) else plain
                    progressed = self._work(found, runner, journals[0])
                    journals.reverse()
                    # Who is asked to stop gives back what it has, which is no fault of the lease.
                    self._fruitless.ended(progressed=progressed or self._drain.asked.is_set())
                    self._idle.over()
                except (FatalError, NoProgress) as error:
                    code = self._gives_up(error)
                    break
                except ServiceError as error:
                    # The task at hand, if any, is given back: whether its marker exists is for
                    # the next holder to see.
                    self.logger.warning(
                        "a service failed", error=str(error), in_a_row=self._setbacks.in_a_row + 1
                    )
                    if not self._setbacks.bear(error):
                        code = EXIT_INFRASTRUCTURE
                        break
                except (OSError, sqlite3.Error) as error:
                    # This node's scratch: every further task would fail here too.
                    self.logger.error("scratch failed", error=describe(error))
                    code = EXIT_INFRASTRUCTURE
                    break
        finally:
            code = self._wind_up(code)
            plain.close()
            careful.close()
        return code

    def _gives_up(self, error: FatalError | NoProgress) -> int:
        """The exit code of a worker that has no use; why, is told."""
        if isinstance(error, FatalError):
            return EXIT_CONFIG
        self.logger.error("no progress: the worker ends", error=str(error))
        self._trail.note(
            "no_progress", {"leases": error.leases, "node": self.identity.slurm.get("node", "")}
        )
        return EXIT_NO_PROGRESS

    def _next(self) -> Attempt | Finished | None:
        """The next task: the one that was leased ahead, or one leased now."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            found = ahead.result()
            if isinstance(found, Attempt):
                return found
            if found is None and self._idle.is_surplus():
                # Thousands leave within a minute at a job's end: another look each is a burden.
                self.logger.info("others will do what is left")
                return Finished()
        return self._find()

    def _find(self) -> Attempt | Finished | None:
        job = self._jobs.find(consistent=False)
        if job is not None and job.stop:
            self.logger.warning("the job is stopped", reason=job.stop)
            return Finished()
        if job is not None and job.paused:
            # The nodes are others' until somebody resumes the job, with new workers.
            self.logger.info("the job is paused", by=job.paused)
            return Finished()
        if job is None or job.state is JobState.PLANNING:
            return None
        if not self._durations.another_fits():
            self._drain.before_time_limit = True
            self._drain.asked.set()
            self.logger.info("no time is left for another task")
            return None
        self._finder.new_generation(job.generation)
        while True:
            found = self._finder.next()
            if isinstance(found, Finished):
                if self._is_new_generation():
                    continue
                return found
            if not isinstance(found, Found):
                self._idle.saw(found)
                return None
            attempt = self._attempts.open(found.lease)
            if attempt is not None:
                return attempt

    def _is_new_generation(self) -> bool:
        """Whether there is one that an eventually consistent read has not shown yet."""
        job = self._jobs.find()
        return job is not None and self._finder.new_generation(job.generation)

    def _disown(self, row: TaskRow, request: str) -> None:
        """A lease that we may have got without an answer is given back."""
        self._heart.owe(lambda: self._table.disown(row, self.identity.worker, request))

    def _rest(self, seconds: float) -> None:
        self._drain.asked.wait(seconds)

    def _must_stop(self) -> bool:
        if self._drain.asked.is_set():
            return True
        running = self._running
        return running is not None and not running.hold.trusted

    def _work(self, attempt: Attempt, runner: Runner, journal: Journal) -> bool:
        """Run one task, and leave its commit to go on beside the next.

        False if not one of its items came to its end.

        Raises:
            ServiceError, OSError, sqlite3.Error: if a service or scratch failed; the lease was
                given back.
        """
        hold, lease = attempt.hold, attempt.lease
        began, started = self._clock.boot_time(), self._clock.now()
        ran = self._threads.signal()
        try:
            if self._committed_from is journal:
                # A task in between was lost or given back, so nobody has waited for this yet.
                self._finish_commit()
            journal.begin()
            journal.restore(attempt.restored)
            restored = journal.ok + journal.failed
            self._leases += 1
            have = journal.positions() if attempt.restored else set()
            todo = [each for each in range(len(attempt.items)) if each not in have]
            hold.start(journal, attempt.checkpoints)
            self._running = attempt
            self._recorder.task(lease.task, lease.attempt)
            self._ahead = self._threads.start(lambda: self._lease_ahead(attempt, journal, ran))
            with bound(task=lease.task, attempt=lease.attempt):
                runner.run(attempt.items, todo, lease.attempt, journal)
            journal.flush()
        except FatalError as error:
            # The job is stopped first: should the release fail, the lease runs out unused.
            self._stop_job(error)
            self._attempts.release(attempt)
            raise
        except (OSError, sqlite3.Error) as error:
            self._attempts.give_up(hold, error)
            raise
        except ServiceError as error:
            self._attempts.give_back(attempt, error)
            raise
        finally:
            ran.set()
            self._running = None
            self._recorder.idle()
        took = self._clock.boot_time() - began
        if hold.lost:
            hold.stop()
            self._attempts.discard(attempt)
        elif journal.ok + journal.failed < len(attempt.items):
            self._attempts.release(attempt, self._clock.boot_time() - hold.saved)
        else:
            hold.stop()
            self._durations.add(took)
            try:
                self._finish_commit()
            finally:
                self._committing = self._threads.start(
                    lambda: self._commit(attempt, journal, started)
                )
                self._committed_from = journal
        self._items_ended += (ended := journal.ok + journal.failed - restored)
        return not todo or ended > 0

    def _lease_ahead(
        self, attempt: Attempt, journal: Journal, ran: Signal
    ) -> Attempt | Finished | None:
        """Wait until the running task is nearly done, then lease and fetch the next."""
        began = self._clock.boot_time()
        restored = _items_of(attempt.restored)
        left = len(attempt.items) - restored
        while not self._durations.nearly_done(journal.ok + journal.failed - restored, left, began):
            if ran.wait(_LOOK_AHEAD_S):
                break
        if self._drain.asked.is_set() or not self._durations.another_fits():
            return None
        return self._find()

    def _commit(self, attempt: Attempt, journal: Journal, started: float) -> None:
        try:
            standing = self._attempts.commit(attempt, journal, started)
            self._setbacks.over()
        except ForeignMarker as error:
            self._attempts.give_up(attempt.hold, error)
            return
        except ServiceError as error:
            self._attempts.give_back(attempt, error)
            raise
        except (OSError, sqlite3.Error) as error:
            self._attempts.give_up(attempt.hold, error)
            raise
        finally:
            self._attempts.discard(attempt)
        won = standing.attempt == attempt.lease.attempt and not standing.split
        self.tasks_done += won
        self.logger.info(
            "task committed" if won else "another attempt had committed this task",
            task=attempt.lease.task,
            attempt=attempt.lease.attempt,
            items_ok=standing.ok,
            failed=standing.failed,
            rows=standing.rows,
        )

    def _finish_commit(self) -> None:
        committing, self._committing = self._committing, None
        self._committed_from = None
        if committing is not None:
            committing.result()

    def _wind_up(self, code: int) -> int:
        """Commit what is run, give back what is not; the exit code."""
        ahead, self._ahead = self._ahead, None
        steps: list[Callable[[], object]] = [self._finish_commit]
        if ahead is not None:
            steps.append(lambda: self._return_ahead(ahead))
        if self._wants_requeue():
            steps.append(self._ask_for_requeue)
        for step in steps:
            try:
                step()
            except (ServiceError, OSError, sqlite3.Error) as error:
                self.logger.warning("not wound up; the lease will run out", error=describe(error))
                code = code or EXIT_INFRASTRUCTURE
        return code

    def _return_ahead(self, ahead: Pending[Attempt | Finished | None]) -> None:
        found = ahead.result()
        if isinstance(found, Attempt):
            self._attempts.release(found)

    def _stop_job(self, error: FatalError) -> None:
        self._jobs.stop(f"{describe(error)} (worker {self.identity.worker})")
        self._trail.note("stopped", {"reason": describe(error)})
        self.logger.error("the handler stopped the job", error=describe(error))

    def _wants_requeue(self) -> bool:
        """Whether another start of this element would get on, as the time limit ends this one.

        One in which no item ended, though some ran all the time, is not repeated: the items
        take longer than a worker has.
        """
        if not self._drain.before_time_limit or not self.identity.slurm["array"]:
            return False
        ended, running = self._items_ended, self._running
        if running is not None:
            ended += sum(running.hold.progress) - _items_of(running.restored)
        if self._leases and ended <= 0 and not self._recorder.waited:
            self.logger.error(
                "not requeued: no item ended before the time limit; raise slurm.time, or set "
                "worker.item_timeout"
            )
            return False
        return True

    def _ask_for_requeue(self) -> None:
        """Before the time limit: have Slurm start this element again, as work is left."""
        self.logger.info("requeue asked", error=requeue(self.identity.slurm))


def _items_of(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome.items for outcome in outcomes)


def read_config(data: bytes | None, key: str) -> JobConfig:
    """The job's resolved configuration.

    Raises:
        UserError: if it is not there, was written by another release, or has times that can't
            work together.
    """
    if data is None:
        raise UserError(f"--config: there is no object {key!r}; submit the job again")
    named = _DIGEST.search(key)
    if named and hashlib.sha256(data).hexdigest() != named.group(1):
        raise UserError(f"--config: {key!r} is not what its name says; submit the job again")
    try:
        config = JobConfig.from_json(data)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(
            f"--config: {key!r} was written by another release ({error}); submit the job again"
        ) from error
    check_times(config.lease, config.worker, config.limits)
    return config

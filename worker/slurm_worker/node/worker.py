"""A worker process, from the load of its handler to its end.

Workers are interchangeable and keep nothing: when one dies, another leases its task once the
lease has run out. `task_loop.py` has the loop, `attempts.py` the requests per task.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3

from slurm_worker.errors import ServiceError, UserError, describe
from slurm_worker.execution.calls import Calls
from slurm_worker.execution.context import Fetcher, HandlerResources
from slurm_worker.execution.handler import Handler, load, set_up, tear_down
from slurm_worker.execution.throttle import TokenThrottle
from slurm_worker.node.activity import Activity
from slurm_worker.node.attempts import Attempts
from slurm_worker.node.context import NodeContext
from slurm_worker.node.heartbeat import Heartbeat
from slurm_worker.node.slurm_job import WorkerExit
from slurm_worker.node.task_loop import TaskLoop
from slurm_worker.node.task_source import TaskSource
from slurm_worker.protocol.job_config import JobConfig, check_times
from slurm_worker.rate_limits.limiter import RateLimiter
from slurm_worker.results.journal import Journal
from slurm_worker.results.parts import PARQUET, Columns, to_lines

#: A configuration's key holds the digest of what it must be.
_DIGEST = re.compile(r"/config/([0-9a-f]{64})\.json$")
STARTS_PER_S = 500


class Worker:
    """One worker process."""

    def __init__(self, context: NodeContext) -> None:
        config, clock, rng = context.config, context.clock, context.rng
        self.context = context
        context.recorder.owner(context.identity.worker)
        self._activity = Activity(context)
        self._ended = context.threads.signal()
        rows, workers, record = context.table.rows, config.max_workers, context.record_event
        limiters = [
            RateLimiter(rows, limit, workers, clock, rng, record) for limit in config.limits
        ]
        self._throttle = TokenThrottle(limiters, clock, self._activity.must_stop, context.recorder)

    @property
    def tasks_done(self) -> int:
        """Tasks that this process committed."""
        return self._activity.tasks_done

    def run(self) -> WorkerExit:
        """Work until nothing is left, or until asked to stop; return the exit code.

        Raises:
            UserError: if the job's code can't be run.
            ServiceError: if a service or the node's scratch fails at the start.
        """
        context, logger = self.context, self.context.logger
        # A mass start spreads over workers/500 seconds.
        context.clock.sleep(context.rng.uniform(0, context.config.max_workers / STARTS_PER_S))
        handler, resources = self._load()
        columns = self._columns()
        journals = self._journals()
        calls = Calls(
            handler,
            resources,
            context.config,
            self._activity.must_stop,
            context.clock,
            context.rng,
            context.recorder,
            columns.to_lines if columns else to_lines,
        )
        heartbeat = Heartbeat(context)
        attempts = Attempts(context, heartbeat, columns)
        source = TaskSource(context, self._activity, attempts)
        logger.info(
            "worker starts", handler=context.config.handler.entry, scratch=str(context.scratch)
        )
        deadline = context.threads.start(lambda: self._exit_in_time(attempts, source))
        try:
            return TaskLoop(context, self._activity, calls, journals, attempts, source).run()
        finally:
            tear_down(handler, resources)
            self._throttle.close()
            self._ended.set()
            context.drain.stop_requested.set()
            deadline.result()
            heartbeat.close()
            logger.info("worker ends", tasks_done=self.tasks_done, **self._throttle.numbers())

    def _load(self) -> tuple[Handler, HandlerResources]:
        context, config = self.context, self.context.config
        store = context.store
        handler = load(config.handler, store.objects, store.paths, context.scratch)
        resources = HandlerResources(
            job=config.job_id,
            params=json.dumps(config.handler.params),
            logger=context.logger,
            scratch=context.scratch,
            fetcher=Fetcher(context.buckets, context.scratch / "fetched"),
            throttle=self._throttle,
        )
        return handler, set_up(handler, resources)

    def _columns(self) -> Columns | None:
        """The writer of Parquet parts; None if the job wants none, or this node can't."""
        if self.context.config.part_format != PARQUET:
            return None
        try:
            # Only now: the handler's requirements may have brought it.
            from slurm_worker.aggregate.job.parquet_part import ParquetColumns
        except ImportError as error:
            self.context.logger.warning("parts are JSON lines", reason=describe(error))
            return None
        return ParquetColumns(self.context.config.columns)

    def _journals(self) -> list[Journal]:
        scratch = self.context.scratch
        try:
            return [Journal(scratch / f"journal-{name}.sqlite") for name in "ab"]
        except sqlite3.Error as error:
            message = f"scratch {scratch}: {error}; name another folder with --scratch"
            raise ServiceError(message) from error

    def _exit_in_time(self, attempts: Attempts, source: TaskSource) -> None:
        """End the process, in another thread: Slurm kills about 30 s after it asks.

        The item that runs is given up, and done again by the next holder of the task. If it ends
        at this very moment, both ways out are taken; the table lets one of them release the lease.
        """
        context, activity = self.context, self._activity
        context.drain.stop_requested.wait()
        if self._ended.wait(context.drain_s):
            return
        running = activity.running
        context.logger.warning("an item still runs; the worker exits without it")
        try:
            if running is not None:
                attempts.release(running, context.clock.boot_time() - running.held.saved)
            source.return_ahead(wait=False)
        except (ServiceError, OSError, sqlite3.Error) as error:
            context.logger.warning("not given back; the lease will run out", error=describe(error))
        activity.requeue_before_time_limit()
        self._throttle.close()
        context.leave()


def read_config(data: bytes | None, key: str) -> JobConfig:
    """The job's resolved configuration.

    Raises:
        UserError: if it is missing, another release wrote it, or its times can't work together.
    """
    if data is None:
        raise UserError(f"--config: there is no object {key!r}; submit the job again")
    named = _DIGEST.search(key)
    if named and hashlib.sha256(data).hexdigest() != named.group(1):
        raise UserError(
            f"--config: {key!r} does not have the SHA-256 of its name; submit the job again"
        )
    try:
        config = JobConfig.from_json(data)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(
            f"--config: {key!r} was written by another release ({error}); submit the job again"
        ) from error
    check_times(config.lease, config.worker, config.limits)
    return config

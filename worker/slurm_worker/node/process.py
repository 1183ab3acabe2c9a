"""One worker process, from its configuration to its end, with the services of AWS."""

from __future__ import annotations

import os
import random
import socket
import sys
from contextlib import suppress
from pathlib import Path

from slurm_worker.backends.clock import AwsClock
from slurm_worker.backends.dynamodb import DynamoRows, dynamo_client
from slurm_worker.backends.request_counter import RequestCounts
from slurm_worker.backends.s3 import S3Objects, s3_client
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.execution.flight_recorder import Recorder
from slurm_worker.node import logging
from slurm_worker.node.context import NodeContext
from slurm_worker.node.slurm_job import Drain, WorkerExit, WorkerIdentity, array_size, seconds_left
from slurm_worker.node.supervisor import Death
from slurm_worker.node.threads import PooledThreads
from slurm_worker.node.worker import Worker, read_config
from slurm_worker.protocol.job_config import JobConfig
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import TaskId, check_job_id, split_s3_uri
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.ports import Logger
from slurm_worker.protocol.task_table import TaskTable

#: A hung item is first interrupted within its process; the supervisor waits so much longer.
_HANG_FACTOR = 1.5
_HANG_MARGIN_S = 5.0


def work(
    config_uri: str,
    submission: str,
    folder: Path,
    recorder: Recorder,
    number: int,
    death: Death | None,
) -> int:
    """Be a worker on the job at `config_uri`, ``s3://bucket/key``; return the exit code.

    `submission` names the folder of the logs. `folder` is scratch of this process alone. `death`
    is that of the process before this one, to report.

    Raises:
        UserError: if the job can't be run on any node.
        ServiceError: if a service or this node failed.
    """
    bucket, key = split_s3_uri(config_uri, "--config")
    s3, requests = s3_client(), RequestCounts()
    requests.watch(s3)
    config = read_config(S3Objects(s3, bucket).get(key), key)
    check_job_id(config.job_id)
    identity = WorkerIdentity.from_environment(os.environ, submission, socket.gethostname())
    threads = PooledThreads()
    drain = Drain(threads.signal())
    drain.install()
    clock = AwsClock()
    dynamo = dynamo_client()
    requests.watch(dynamo)
    rows = DynamoRows(dynamo, config.table, clock)
    store = JobStore(S3Objects(s3, config.bucket), JobPaths(config.prefix, config.job_id))
    table = TaskTable(rows, config.job_id, config.shards, config.lease, clock)
    recorder.limits(*hang_limits(config))
    logs = _start_logs(config, identity, store, folder, number)

    def leave() -> None:
        logs.close()
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(0)

    try:
        if death is not None:
            _report(death, table, logs.logger)
        context = NodeContext(
            config=config,
            identity=identity,
            store=store,
            jobs=JobTable(rows, config.job_id, clock),
            table=table,
            buckets=lambda name: S3Objects(s3, name),
            clock=clock,
            scratch=folder,
            logger=logs.logger,
            threads=threads,
            drain=drain,
            rng=random.Random(),
            recorder=recorder,
            requests=requests,
            seconds_left=seconds_left(os.environ),
            array_size=array_size(os.environ),
            leave=leave,
        )
        return _run(context)
    except (UserError, ServiceError) as error:
        logs.logger.error("the worker can't continue", error=str(error), exc_info=error)
        raise
    finally:
        logs.close()


def hang_limits(config: JobConfig) -> tuple[float, float]:
    """Seconds after which an item hangs (0 for no limit), and a process without any progress."""
    timeout_s = config.worker.item_timeout_s
    item_s = timeout_s * _HANG_FACTOR + _HANG_MARGIN_S if timeout_s else 0.0
    return item_s, config.lease.stall_s + _HANG_MARGIN_S


def _run(context: NodeContext) -> WorkerExit:
    try:
        return Worker(context).run()
    except ServiceError as error:
        context.record_end(error)
        raise


def _start_logs(
    config: JobConfig, identity: WorkerIdentity, store: JobStore, folder: Path, number: int
) -> logging.Logs:
    ids: dict[str, object] = {
        "job": config.job_id,
        "task": "",
        "attempt": 0,
        "worker": identity.worker,
        "submission": identity.submission,
        "slurm": identity.slurm,
        "process": number,
    }

    def upload(chunk: int, data: bytes) -> None:
        store.objects.put(store.paths.log(identity.submission, identity.worker, chunk), data)

    return logging.Logs(ids, folder, upload, config.worker.log_level)


def _report(death: Death, table: TaskTable, logger: Logger) -> None:
    """Report how the process before this one died; a write for each lease that it had."""
    task, owner, crash = TaskId(death.task), death.owner, death.crash
    recorded = bool(task) and table.record_crash(task, death.attempt, owner, crash)
    ended = [name for name, number in death.leases if table.abandon(TaskId(name), number, owner)]
    logger.error(
        "the process before this one died",
        task=task,
        attempt=death.attempt,
        error_class=crash.error_class.value,
        position=crash.position,
        recorded=recorded,
        leases_ended=ended,
    )

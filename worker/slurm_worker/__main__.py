"""The node's command line: ``python -m slurm_worker run --config s3://… --submission 000-1``."""

from __future__ import annotations

import argparse
import os
import random
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from slurm_worker import __version__
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.node.exit_codes import WorkerExit

if TYPE_CHECKING:
    from slurm_worker.execution.flight_recorder import Recorder
    from slurm_worker.node.supervisor import Death
    from slurm_worker.protocol.ports import Logger
    from slurm_worker.protocol.task_table import TaskTable

#: A hung item is first interrupted within its process; its parent waits for that.
_PATIENCE = 1.5
_PATIENCE_S = 5.0


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = _parser().parse_args(argv)
    return int(arguments.function(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slurm-worker", description=__doc__)
    parser.add_argument("--version", action="version", version=f"slurm-worker {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="work on a job until nothing of it is left")
    run.set_defaults(function=_run)
    run.add_argument("--config", required=True, help="s3://bucket/key of the resolved job")
    run.add_argument("--submission", default="manual", help="names the folder of the logs")
    run.add_argument("--processes", type=int, default=1, help="worker processes to start")
    run.add_argument(
        "--scratch",
        type=Path,
        default=None,
        help="node-local folder (default: $SLURM_TMPDIR, $TMPDIR or /tmp)",
    )
    check = commands.add_parser("check", help="load all that a worker needs; tell what is here")
    check.set_defaults(function=_check)
    check.add_argument("--table", default="", help="a table to try, with this node's credentials")
    check.add_argument("--objects", default="", help="s3://bucket/prefix to try")
    return parser


def _check(arguments: argparse.Namespace) -> int:
    """Print as JSON what this node offers."""
    from slurm_worker.diagnostics import node_report
    from slurm_worker.node import (
        worker,  # noqa: F401  all that a worker needs
    )

    found = node_report.examine(_scratch(), arguments.table, arguments.objects)
    print(node_report.as_line(found))  # noqa: T201
    return 0


def _scratch() -> Path:
    return Path(os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir())


def _run(arguments: argparse.Namespace) -> int:
    from slurm_worker.node.supervisor import Supervisor

    scratch = arguments.scratch or _scratch()

    def child(folder: Path, recorder: Recorder, number: int, death: Death | None) -> int:
        try:
            return _work(arguments, folder, recorder, number, death)
        except UserError as error:
            print(f"slurm-worker: {error}", file=sys.stderr)  # noqa: T201
            return WorkerExit.CONFIG
        except ServiceError as error:
            print(f"slurm-worker: {error}", file=sys.stderr)  # noqa: T201
            return WorkerExit.INFRASTRUCTURE

    try:
        return Supervisor(child, arguments.processes, scratch).run()
    except ServiceError as error:
        print(f"slurm-worker: {error}", file=sys.stderr)  # noqa: T201
        return WorkerExit.INFRASTRUCTURE


def _work(
    arguments: argparse.Namespace,
    folder: Path,
    recorder: Recorder,
    number: int,
    death: Death | None,
) -> int:
    """One worker process, from its configuration to its end."""
    # What is heavy is imported by the processes that do the work, not by their parent.
    from slurm_worker.backends.clock import AwsClock
    from slurm_worker.backends.dynamodb import DynamoRows, dynamo_client
    from slurm_worker.backends.request_counter import RequestCounts
    from slurm_worker.backends.s3 import S3Objects, s3_client
    from slurm_worker.node import logging
    from slurm_worker.node.slurm_job import Drain, WorkerIdentity, seconds_left
    from slurm_worker.node.threads import PooledThreads
    from slurm_worker.node.worker import Worker, read_config
    from slurm_worker.protocol.keys import check_job_id, split_s3_uri
    from slurm_worker.protocol.paths import JobPaths
    from slurm_worker.protocol.task_table import TaskTable

    bucket, key = split_s3_uri(arguments.config, "--config")
    client, requests = s3_client(), RequestCounts()
    requests.watch(client)
    config = read_config(S3Objects(client, bucket).get(key), key)
    check_job_id(config.job_id)
    identity = WorkerIdentity.from_environment(
        os.environ, arguments.submission, socket.gethostname()
    )
    threads = PooledThreads()
    drain = Drain(threads.signal())
    drain.install()
    clock = AwsClock()
    dynamo = dynamo_client()
    requests.watch(dynamo)
    rows = DynamoRows(dynamo, config.table, clock)
    paths = JobPaths(config.prefix, config.job_id)
    objects = S3Objects(client, config.bucket)
    timeout_s = config.worker.item_timeout_s
    recorder.limits(
        timeout_s * _PATIENCE + _PATIENCE_S if timeout_s else 0.0,
        config.lease.stall_s + _PATIENCE_S,
    )
    ids: dict[str, object] = {
        "job": config.job_id,
        "task": "",
        "attempt": 0,
        "worker": identity.worker,
        "submission": identity.submission,
        "slurm": identity.slurm,
        "process": number,
    }
    logs = logging.start(
        ids,
        folder,
        lambda chunk, data: objects.put(
            paths.log(identity.submission, identity.worker, chunk), data
        ),
        config.worker.log_level,
    )

    def leave() -> None:
        logs.close()
        sys.stderr.flush()
        os._exit(0)

    try:
        if death is not None:
            table = TaskTable(rows, config.job_id, config.shards, config.lease, clock)
            _report(death, table, logs.logger)
        worker = Worker(
            config,
            identity,
            rows=rows,
            buckets=lambda name: S3Objects(client, name),
            clock=clock,
            scratch=folder,
            logger=logs.logger,
            threads=threads,
            drain=drain,
            rng=random.Random(),
            recorder=recorder,
            seconds_left=seconds_left(os.environ),
            leave=leave,
            requests=requests,
        )
        return worker.run()
    except (UserError, ServiceError) as error:
        logs.logger.error("the worker can't go on", error=str(error), exc_info=error)
        raise
    finally:
        logs.close()


def _report(death: Death, table: TaskTable, logger: Logger) -> None:
    """Tell of the process before this one; a write for each lease that it had."""
    from slurm_worker.protocol.keys import TaskId

    noted = bool(death.task) and table.record_crash(
        TaskId(death.task), death.attempt, death.owner, death.crash
    )
    ended = [
        task for task, attempt in death.leases if table.abandon(TaskId(task), attempt, death.owner)
    ]
    logger.error(
        "the process before this one died",
        task=death.task,
        attempt=death.attempt,
        error_class=death.crash.error_class.value,
        position=death.crash.position,
        noted=noted,
        leases_ended=ended,
    )


if __name__ == "__main__":
    sys.exit(main())

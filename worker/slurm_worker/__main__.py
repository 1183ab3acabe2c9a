"""The node's command line: ``python -m slurm_worker run --config s3://… --submission 000-1``."""

from __future__ import annotations

import argparse
import gzip
import os
import random
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from slurm_worker import __version__
from slurm_worker.clock import AwsClock
from slurm_worker.dynamo import DynamoRows, dynamo_client
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.keys import JobPaths, check_job_id, split_s3_uri
from slurm_worker.log import start_logging
from slurm_worker.s3 import S3Objects, s3_client
from slurm_worker.worker import (
    EXIT_CONFIG,
    EXIT_INFRASTRUCTURE,
    Drain,
    Identity,
    Worker,
    read_config,
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments.config, arguments.submission, arguments.scratch)
    except UserError as error:
        print(f"slurm-worker: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_CONFIG
    except ServiceError as error:
        print(f"slurm-worker: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_INFRASTRUCTURE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slurm-worker", description=__doc__)
    parser.add_argument("--version", action="version", version=f"slurm-worker {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="work on a job until nothing of it is left")
    run.add_argument("--config", required=True, help="s3://bucket/key of the resolved job")
    run.add_argument("--submission", default="manual", help="names the folder of the logs")
    run.add_argument(
        "--scratch",
        type=Path,
        default=None,
        help="node-local folder (default: $SLURM_TMPDIR, $TMPDIR or /tmp)",
    )
    return parser


def _run(config_uri: str, submission: str, scratch: Path | None) -> int:
    bucket, key = split_s3_uri(config_uri, "--config")
    client = s3_client()
    config = read_config(S3Objects(client, bucket).get(key), key)
    check_job_id(config.job_id)
    identity = Identity.from_environment(dict(os.environ), submission, socket.gethostname())
    folder = _scratch_folder(scratch, identity)
    ids: dict[str, object] = {
        "job": config.job_id,
        "task": "",
        "attempt": 0,
        "worker": identity.worker,
        "submission": submission,
        "slurm": identity.slurm,
    }
    log_file = folder / "worker.jsonl"
    logger = start_logging(ids, log_file)
    drain = Drain()
    drain.install()
    clock = AwsClock()
    worker = Worker(
        config,
        identity,
        rows=DynamoRows(dynamo_client(), config.table, clock),
        buckets=lambda name: S3Objects(client, name),
        clock=clock,
        scratch=folder,
        logger=logger,
        ids=ids,
        drain=drain,
        rng=random.Random(),
    )
    try:
        return worker.run()
    except (UserError, ServiceError):
        logger.exception("the worker can't go on")
        raise
    finally:
        log_key = JobPaths(config.prefix, config.job_id).log(submission, identity.worker)
        S3Objects(client, config.bucket).put(log_key, gzip.compress(log_file.read_bytes()))
        shutil.rmtree(folder, ignore_errors=True)


def _scratch_folder(chosen: Path | None, identity: Identity) -> Path:
    base = chosen or Path(os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir())
    try:
        base.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"slurm-worker-{identity.worker}-", dir=base))
    except OSError as error:
        raise ServiceError(f"scratch {base}: {error}; name another with --scratch") from error


if __name__ == "__main__":
    sys.exit(main())

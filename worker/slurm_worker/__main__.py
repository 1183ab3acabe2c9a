"""The node's command line: ``python -m slurm_worker run --config s3://… --submission 000-1``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from slurm_worker import __version__
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.node.slurm_job import WorkerExit

if TYPE_CHECKING:
    from slurm_worker.execution.flight_recorder import Recorder
    from slurm_worker.node.supervisor import Death


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.function(arguments))
    except (UserError, ServiceError) as error:
        return _failed(error)


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    made = argparse.ArgumentParser(prog="slurm-worker", description=__doc__)
    made.add_argument("--version", action="version", version=f"slurm-worker {__version__}")
    commands = made.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="work on a job until no task is left")
    run.set_defaults(function=_run)
    run.add_argument("--config", required=True, help="s3://bucket/key of the resolved job")
    run.add_argument("--submission", default="manual", help="names the folder of the logs")
    run.add_argument("--processes", type=int, default=1, help="worker processes to start")
    run.add_argument(
        "--scratch", type=Path, help="node-local folder (default: $SLURM_TMPDIR, $TMPDIR or /tmp)"
    )
    check = commands.add_parser("check", help="load all that a worker needs; print a report")
    check.set_defaults(function=_check)
    check.add_argument("--table", default="", help="a table to try, with this node's credentials")
    check.add_argument("--objects", default="", help="s3://bucket/prefix to try")
    return made


def _check(arguments: argparse.Namespace) -> int:
    """Print as JSON what this node offers."""
    from slurm_worker.diagnostics import node_report
    from slurm_worker.node import process  # noqa: F401  all that a worker needs

    found = node_report.examine(_scratch(), arguments.table, arguments.objects)
    print(json.dumps(found, sort_keys=True))  # noqa: T201
    return 0


def _scratch() -> Path:
    return Path(os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir())


def _run(arguments: argparse.Namespace) -> int:
    from slurm_worker.node.supervisor import Supervisor

    def child(folder: Path, recorder: Recorder, number: int, death: Death | None) -> int:
        # The processes that do the work import the heavy modules; their parent does not.
        from slurm_worker.node.process import work

        try:
            return work(arguments.config, arguments.submission, folder, recorder, number, death)
        except (UserError, ServiceError) as error:
            return _failed(error)

    return Supervisor(child, arguments.processes, arguments.scratch or _scratch()).run()


def _failed(error: UserError | ServiceError) -> WorkerExit:
    # A full disk under the output must not change how this ends.
    with suppress(OSError):
        print(f"slurm-worker: {error}", file=sys.stderr)  # noqa: T201
    return WorkerExit.after(error)


if __name__ == "__main__":
    sys.exit(main())

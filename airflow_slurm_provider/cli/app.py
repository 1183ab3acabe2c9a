"""The root of `slurmctl`: which commands there are, and what an error becomes.

Imports click and the error classes only. Commands live in modules that are imported when
one of their commands runs; their one-line help stands in `COMMANDS` for that reason.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | the job failed: tasks gave up, or no worker is left; doctor, bootstrap: jobs can't run |
| 2 | wrong use; a mistake in a config, an argument or an input; no AWS credentials |
| 3 | a service can't be reached or refuses; the same command may work later |
| 70 | a bug in slurmctl, with its traceback |
| 130 | interrupted; running the same command again continues |
| 141 | whoever read the output has left, as ``head`` does |
"""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from enum import IntEnum

import click
from click.shell_completion import CompletionItem

from slurm_worker.errors import NoCredentials, ServiceError, UserError
from slurm_worker.printable import printable, printable_lines

#: name: (module, one line for ``slurmctl --help``); the attribute is the name with ``_`` for ``-``.
COMMANDS = {
    "plan": ("cost", "Tell what submitting a job would plan, start and cost; do none of it."),
    "submit": ("submit", "Plan a job from its YAML file and start its workers."),
    "status": ("status", "Print how far a job is."),
    "wait": ("status", "Wait until nothing of a job is left to run."),
    "watch": ("watch", "Show a job as it goes, on the whole terminal."),
    "retry": ("results", "Run failed items again, by error class."),
    "errors": ("results", "Group a job's failures by class and message."),
    "aggregate": ("results", "Publish a job's results as one Parquet dataset."),
    "aggregate-files": ("aggregate_files", "Merge files into one Parquet dataset, without a job."),
    "logs": ("logs", "Print what the workers of a job said."),
    "events": ("events", "Print a job's audit trail: who did what, when."),
    "cost": ("cost", "Tell what a job has cost so far, and what would make it cheaper."),
    "limits": ("limits", "Show a job's rate limits, or the rate that a vendor's quota allows."),
    "pause": ("control", "Have a job's workers leave; who waits goes on waiting."),
    "resume": ("control", "Go on with a job that was paused or stopped."),
    "workers": ("control", "Add workers to a job that is under way."),
    "cancel": ("control", "Cancel a job's arrays at once; submit continues it."),
    "dashboard": ("dashboard", "Serve the site's jobs to a browser on this machine."),
    "completion": ("completion", "Print the script that makes a shell complete slurmctl."),
    "bootstrap": ("bootstrap", "Create the table and the bucket where they aren't there."),
    "doctor": ("doctor", "Check login, Slurm, table, bucket, permissions, clocks and a node."),
    "gc": ("gc", "Delete what a job has left behind on S3 and nothing names."),
}


#: What a group without a command raises; click before 8.2 prints its help and ends.
_NO_ARGUMENTS = getattr(click.exceptions, "NoArgsIsHelpError", ())


class ExitCode(IntEnum):
    """What `slurmctl` ends with; the table above says when."""

    OK = 0
    JOB_FAILED = 1
    USER_ERROR = 2
    SERVICE_ERROR = 3
    BUG = 70
    INTERRUPTED = 130
    READER_LEFT = 141


class _ReaderLeft(Exception):
    """Standard output is closed. No OSError, because click ends these by itself, with 1."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command, and have all that it printed out of the process."""
        try:
            result: object = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise _ReaderLeft from error
        return result

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 click's signature
        """The names, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 click's signature
        cmd_name: str,
    ) -> click.Command | None:
        """Import and return a command; None where there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"airflow_slurm_provider.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, naming the nearest command when there is no such one."""
        unknown = args and args[0] not in COMMANDS and not args[0].startswith("-")
        if unknown and not ctx.resilient_parsing:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            mend = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}"
            raise UserError(f"command: {args[0]!r} is unknown; {mend}")
        return super().resolve_command(ctx, args)

    def shell_complete(
        self,
        ctx: click.Context,
        incomplete: str,
    ) -> list[CompletionItem]:
        """Complete a command's name without importing the commands."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=line)
            for name, (_, line) in COMMANDS.items()
            if name.startswith(incomplete)
        ]

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the commands' help without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Each command has an example: slurmctl COMMAND --help",
)
@click.version_option(package_name="airflow-slurm-provider", prog_name="slurmctl")
def slurmctl() -> None:
    """Run backfills of many items on a Slurm cluster, and follow them.

    The site file says where the task table, the bucket and the cluster are: --site FILE, or
    --profile NAME for ~/.config/slurmctl/NAME.yaml; without them SLURMCTL_CONFIG, then
    SLURMCTL_PROFILE, then ~/.config/slurmctl/site.yaml.
    """


def main() -> None:
    """The entry point of the ``slurmctl`` script."""
    for stream in (sys.stdout, sys.stderr):
        # Names and messages of a job may hold what this terminal's encoding has no bytes for.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors become one line on stderr."""
    try:
        result = slurmctl.main(list(arguments), prog_name="slurmctl", standalone_mode=False)
    except (UserError, NoCredentials) as error:
        return _complain(str(error), ExitCode.USER_ERROR)
    except ServiceError as error:
        return _complain(str(error), ExitCode.SERVICE_ERROR)
    except _NO_ARGUMENTS as error:
        error.show()
        return ExitCode.USER_ERROR
    except click.ClickException as error:
        return _complain(_usage(error), ExitCode.USER_ERROR)
    except (KeyboardInterrupt, click.Abort):
        return _complain(
            "interrupted; running the same command again continues", ExitCode.INTERRUPTED
        )
    except _ReaderLeft:
        # What is still buffered would complain at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.READER_LEFT
    except Exception:
        click.echo(printable_lines(traceback.format_exc()), err=True, nl=False)
        return _complain("this is a bug in slurmctl; please report it", ExitCode.BUG)
    return result if isinstance(result, int) else ExitCode.OK


def _usage(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    mend = f"; see {context.command_path} --help" if context else ""
    return error.format_message().rstrip(".") + mend


def _complain(message: str, code: ExitCode) -> int:
    # An exception's text may hold line ends (sbatch's stderr does); the promise is one line.
    click.echo(f"slurmctl: {printable(' '.join(message.split()))}", err=True)
    return code

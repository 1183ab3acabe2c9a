"""The root of `slurmctl`: its commands and its exit codes.

It imports click and the error classes only. A command's module is imported when the command
runs; therefore `COMMANDS` holds the one-line help.
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

from slurm_worker.errors import NoCredentials, ServiceError, UserError, WrongSetting
from slurm_worker.printable import printable, printable_lines

#: By name: module, and one line for ``slurmctl --help``. The attribute has ``_`` for ``-``.
COMMANDS = {
    "plan": ("cost", "Estimate tasks, workers, time and cost of a job without submitting it."),
    "submit": ("control", "Plan a job from its YAML file and start its workers."),
    "status": ("status", "Show a job's progress, failures, workers and dataset."),
    "wait": ("status", "Wait until every task of a job has ended."),
    "watch": ("status", "Show a job's progress live, in the full terminal."),
    "retry": ("results", "Run failed items again, by error class."),
    "errors": ("results", "List a job's failures, grouped by class and message."),
    "aggregate": ("results", "Publish a job's results as one Parquet dataset."),
    "fetch": ("dataset", "Download a job's dataset into a folder, and verify it."),
    "head": ("dataset", "Show the first rows of a job's dataset."),
    "query": ("dataset", "Run a SELECT over a job's dataset."),
    "aggregate-files": ("aggregate_files", "Merge files into one Parquet dataset, without a job."),
    "logs": ("logs", "Print the log lines of a job's workers."),
    "events": ("logs", "Print a job's audit log: who did what, and when."),
    "cost": ("cost", "Show what a job has cost so far, and how to make it cheaper."),
    "limits": ("limits", "Show a job's rate limits, or the rate that a quota allows."),
    "pause": ("control", "Stop a job's workers after their current tasks; resume continues."),
    "resume": ("control", "Continue a job that was paused or stopped."),
    "workers": ("control", "Add workers to a running job."),
    "cancel": ("control", "Cancel a job's Slurm arrays at once; submit continues it."),
    "dashboard": ("dashboard", "Serve a web page with the site's jobs on this machine."),
    "completion": ("completion", "Print a script that makes a shell complete slurmctl."),
    "bootstrap": ("maintenance", "Create the site's table and bucket if they are missing."),
    "doctor": ("maintenance", "Check login, Slurm, table, bucket, permissions, clocks and a node."),
    "gc": ("maintenance", "Delete objects on S3 that a job no longer needs."),
}


#: Raised for a group without a command; click before 8.2 prints the help and ends.
_NO_ARGUMENTS = getattr(click.exceptions, "NoArgsIsHelpError", ())


class ExitCode(IntEnum):
    """The exit codes of `slurmctl`."""

    OK = 0
    JOB_FAILED = 1  #: tasks failed, or no worker is left; doctor, bootstrap: jobs can't run
    USER_ERROR = 2  #: an error in an argument, a config or an input; no valid AWS credentials
    SERVICE_ERROR = 3  #: a service can't be reached or refuses; the command may work later
    BUG = 70  #: a bug in slurmctl, with its traceback
    INTERRUPTED = 130  #: running the same command again continues
    READER_LEFT = 141  #: the reader of the output has closed it, as ``head`` does


class _ReaderLeft(Exception):
    """Standard output is closed. Not an OSError, because click turns those into exit code 1."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command, and flush its output."""
        try:
            result: object = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise _ReaderLeft from error
        return result

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 click's signature
        """The names, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return a command; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"airflow_slurm_provider.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's. For an unknown command, suggest the nearest one."""
        unknown = args and args[0] not in COMMANDS and not args[0].startswith("-")
        if unknown and not ctx.resilient_parsing:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(COMMANDS)}"
            raise UserError(f"command: {args[0]!r} is unknown; {hint}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name without importing the commands."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=line)
            for name, (_, line) in COMMANDS.items()
            if name.startswith(incomplete)
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the commands' help without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="For options and an example: slurmctl COMMAND --help",
)
@click.version_option(package_name="airflow-slurm-provider", prog_name="slurmctl")
def slurmctl() -> None:
    """Run backfills of many items on a Slurm cluster, and follow their progress.

    A site file names the task table, the bucket and the cluster (example: docs/guides/cli.md).
    Give it with --site FILE, or with --profile NAME for ~/.config/slurmctl/NAME.yaml. Without
    these options, slurmctl uses the variable SLURMCTL_CONFIG, then SLURMCTL_PROFILE, then
    ~/.config/slurmctl/site.yaml.
    """


def main() -> None:
    """The entry point of the ``slurmctl`` script."""
    for stream in (sys.stdout, sys.stderr):
        # A job's names and messages may hold characters that this terminal can't encode.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors become one line on stderr."""
    try:
        result = slurmctl.main(list(arguments), prog_name="slurmctl", standalone_mode=False)
    except (UserError, NoCredentials, WrongSetting) as error:
        return _report(str(error), ExitCode.USER_ERROR)
    except ServiceError as error:
        return _report(str(error), ExitCode.SERVICE_ERROR)
    except _NO_ARGUMENTS as error:
        error.show()
        return ExitCode.USER_ERROR
    except click.ClickException as error:
        return _report(_usage(error), ExitCode.USER_ERROR)
    except (KeyboardInterrupt, click.Abort):
        return _report(
            "interrupted; running the same command again continues", ExitCode.INTERRUPTED
        )
    except _ReaderLeft:
        # Otherwise flushing the rest fails when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.READER_LEFT
    except Exception:
        click.echo(printable_lines(traceback.format_exc()), err=True, nl=False)
        return _report("this is a bug in slurmctl; please report it", ExitCode.BUG)
    return result if isinstance(result, int) else ExitCode.OK


def _usage(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"; see {context.command_path} --help" if context else ""
    return error.format_message().rstrip(".") + hint


def _report(message: str, code: ExitCode) -> int:
    # An exception's text may hold line ends, as sbatch's stderr does; we promise one line.
    click.echo(f"slurmctl: {printable(' '.join(message.split()))}", err=True)
    return code

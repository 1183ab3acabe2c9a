"""Batch scripts, as pure functions of their parts: of workers, and of a user's own script.

A worker is started by ``srun``: only steps receive the preemption signal, and ``--signal``
without ``B:`` goes to steps alone. A user's script is always an array, so the code for the
workers' arrays also submits, finds and watches it; a single job is element 0. Nothing secret is
ever in a script.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from airflow_slurm_provider.slurm.options import SlurmOptions
from airflow_slurm_provider.slurm.submission import first_command
from slurm_worker.errors import UserError

#: A site's ``module`` command, where the login node has one: functions are not exported.
_MODULES = '[ -z "${MODULESHOME-}" ] || type module >/dev/null 2>&1 || . "$MODULESHOME/init/bash"'
#: Logs are beside the script: the submission's folder is the job's working directory.
_LOG_OPTIONS = ("--output=worker-%a.log", "--open-mode=append")
#: The folder of users' batch jobs in the remote folder.
BATCH_FOLDER = "batch"
_RANGE = r"\d+(-\d+(:\d+)?)?"
_ARRAY = re.compile(rf"{_RANGE}(,{_RANGE})*(%\d+)?")
_LONGEST_NAME = 150
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def render_script(
    options: SlurmOptions,
    *,
    name: str,
    workers: int,
    command: Sequence[str],
    environment: Mapping[str, str],
) -> str:
    """The script of an array of `workers` elements, each of which runs `command`.

    `environment` must hold no secrets.
    """
    throttle = f"%{options.throttle}" if options.throttle else ""
    arguments = [
        f"--job-name={name}",
        f"--array=0-{workers - 1}{throttle}",
        *_LOG_OPTIONS,
        "--requeue",
        f"--signal=USR1@{options.grace}",
        *options.arguments(),
    ]
    # Since 22.05 a step doesn't inherit --cpus-per-task: it would be bound to one core.
    cpus = f" --cpus-per-task={options.cpus_per_task}" if options.cpus_per_task else ""
    words = " ".join(map(quote, [*options.command_prefix, *command]))
    lines = [
        "#!/bin/bash",
        *_directives(arguments),
        "",
        # Only the account can read what workers write; `setup` may change that.
        "umask 077",
        *_exports(environment),
        *([_MODULES] if options.setup else []),
        *options.setup,
        f"exec srun --ntasks=1{cpus} --kill-on-bad-exit=1 {words}",
        "",
    ]
    return "\n".join(lines)


def batch_script(
    options: SlurmOptions, *, name: str, array: str, body: str, environment: Mapping[str, str]
) -> str:
    """The user's script with our options, which override those in the script.

    `array` has the elements, as ``sbatch --array`` takes them. `body` is a shell script, with or
    without ``#!`` and ``#SBATCH`` lines. `environment` must hold no secrets.

    Raises:
        UserError: naming the field, the value and the fix.
    """
    if not _ARRAY.fullmatch(array):
        raise UserError(f"array: {array!r} is not a list of elements; write 0-9, 1,3,5 or 0-99%10")
    if options.command_prefix:
        raise UserError("slurm.command_prefix: is only for backfills; write it into the script")
    if not body.strip():
        raise UserError("script: is empty; give the lines to run")
    lines = body.splitlines()
    if not lines[0].startswith("#!"):
        lines.insert(0, "#!/bin/bash")
    # Of several directives of a name, sbatch takes the last one.
    head = first_command(lines)
    throttle = f"%{options.throttle}" if options.throttle and "%" not in array else ""
    own = [f"--job-name={name}", f"--array={array}{throttle}", *_LOG_OPTIONS]
    ours = _directives([*options.arguments(), *own])
    modules = [_MODULES] if "bash" in lines[0] else []
    body_lines = [*ours, *_exports(environment), *modules, *options.setup, *lines[head:]]
    return "\n".join([*lines[:head], *body_lines, ""])


def batch_name(label: str, token: str) -> str:
    """A Slurm job name that begins with `label`; other characters become ``-``."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", label).lstrip("._-")[:_LONGEST_NAME]
    return f"{plain or 'job'}.{token}"


def _directives(arguments: Sequence[str]) -> list[str]:
    """Options as lines that ``sbatch`` reads.

    Raises:
        UserError: if an option can't be written that way.
    """
    for argument in arguments:
        # sbatch reads its lines as a shell would, except that it drops backslashes.
        if "\\" in argument:
            problem = f"slurm: {argument!r} holds a backslash, which sbatch drops"
            raise UserError(problem, "remove it")
    return [f"#SBATCH {quote(argument)}" for argument in arguments]


def _exports(environment: Mapping[str, str]) -> list[str]:
    """Lines that set variables; no secrets.

    Raises:
        UserError: if a name or a value can't be written that way.
    """
    for name in environment:
        if not _VARIABLE.fullmatch(name):
            raise UserError(f"slurm: {name!r} is not the name of an environment variable")
    return [f"export {name}={quote(value)}" for name, value in environment.items()]


def quote(value: str) -> str:
    """Quote one word for the shell.

    Raises:
        UserError: if it holds a character that no quoting makes safe in a script's line.
    """
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise UserError(f"slurm: {value!r} holds control characters and can't be in a batch script")
    return shlex.quote(value)

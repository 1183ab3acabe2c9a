"""The batch script, as a pure function of its parts.

The worker is started by ``srun``: only steps receive the preemption signal, and
``--signal`` without ``B:`` goes to steps alone. Nothing secret is ever in it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from airflow_slurm_provider.slurm.options import SlurmOptions
from slurm_worker.errors import UserError

#: A site's ``module`` command, where the login node has one: functions are not exported.
MODULES = ('[ -z "${MODULESHOME-}" ] || type module >/dev/null 2>&1 || . "$MODULESHOME/init/bash"',)
#: Logs are beside the script: the submission's folder is the job's working directory.
LOG_OPTIONS = ("--output=worker-%a.log", "--open-mode=append")
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
        *LOG_OPTIONS,
        "--requeue",
        f"--signal=USR1@{options.grace}",
        *options.arguments(),
    ]
    # Since 22.05 a step doesn't inherit --cpus-per-task: it would be bound to one core.
    cpus = f" --cpus-per-task={options.cpus_per_task}" if options.cpus_per_task else ""
    words = " ".join(map(quote, [*options.command_prefix, *command]))
    lines = [
        "#!/bin/bash",
        *directives(arguments),
        "",
        # Only the account can read what workers write; `setup` may change that.
        "umask 077",
        *exports(environment),
        *(MODULES if options.setup else ()),
        *options.setup,
        f"exec srun --ntasks=1{cpus} --kill-on-bad-exit=1 {words}",
        "",
    ]
    return "\n".join(lines)


def directives(arguments: Sequence[str]) -> list[str]:
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


def exports(environment: Mapping[str, str]) -> list[str]:
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

"""Batch jobs that are not backfills: a script of the user's own, as an array of one or more.

Always an array, so that it is submitted, found again and watched by the same code as the
workers' arrays; a single job is element 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from airflow_slurm_provider.slurm.array_state import ArrayState
from airflow_slurm_provider.slurm.client import SlurmClient
from airflow_slurm_provider.slurm.options import SlurmOptions
from airflow_slurm_provider.slurm.script import MODULES, directives, exports
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.errors import ServiceError, UserError

#: The folder of all batch jobs in the remote folder.
FOLDER = "batch"
_RANGE = r"\d+(-\d+(:\d+)?)?"
_ARRAY = re.compile(rf"{_RANGE}(,{_RANGE})*(%\d+)?")
_LONGEST_NAME = 150
#: Of so many elements the last lines are told.
_TAILS = 3


def batch_script(
    options: SlurmOptions, *, name: str, array: str, body: str, environment: Mapping[str, str]
) -> str:
    """The user's script with our options, which count where both give one.

    Args:
        options: the user's options.
        name: the Slurm job's name.
        array: elements, as ``sbatch --array`` takes them.
        body: a shell script, with or without ``#!`` and ``#SBATCH`` lines.
        environment: variables for it; no secrets.

    Raises:
        UserError: naming what is wrong, and the mend.
    """
    if not _ARRAY.fullmatch(array):
        raise UserError(f"array: {array!r} is not a list of elements; write 0-9, 1,3,5 or 0-99%10")
    if options.command_prefix:
        raise UserError("slurm.command_prefix: is for backfills; write it into the script")
    if not body.strip():
        raise UserError("script: is empty; give the lines to run")
    lines = body.splitlines()
    if not lines[0].startswith("#!"):
        lines.insert(0, "#!/bin/bash")
    # sbatch reads directives up to the first command, and lets the last one count.
    head = next(
        (n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines)
    )
    throttle = f"%{options.throttle}" if options.throttle and "%" not in array else ""
    ours = directives(
        [
            *options.arguments(),
            f"--job-name={name}",
            f"--array={array}{throttle}",
            "--output=worker-%a.log",
            "--open-mode=append",
        ]
    )
    modules = MODULES if "bash" in lines[0] else ()
    body_lines = [*ours, *exports(environment), *modules, *options.setup, *lines[head:]]
    return "\n".join([*lines[:head], *body_lines, ""])


def batch_name(label: str, token: str) -> str:
    """A Slurm job name that begins with `label`, as far as names may hold it."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", label).lstrip("._-")[:_LONGEST_NAME]
    return f"{plain or 'job'}.{token}"


def has_ended(array: ArrayState) -> bool:
    """Whether all elements are in an end state, and it is known how they ended."""
    return not array.unknown and not array.alive


def failure(array: ArrayState) -> str:
    """Why the array can't count as done; empty where every element completed."""
    wrong = {
        n: each for n, each in array.elements.items() if each.state is not ElementState.COMPLETED
    }
    if array.elements and not wrong:
        return ""
    counts = Counter(each.state.value for each in wrong.values())
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no record"
    first = next(iter(sorted(wrong)), None)
    exit_code = wrong[first].exit_code if first is not None else ""
    how = f"; element {first} exited with {exit_code}" if exit_code else ""
    total = len(array.elements)
    return f"array {array.slurm_job_id}: {len(wrong)} of {total} elements failed ({states}){how}"


def last_output(client: SlurmClient, name: str, array: ArrayState, lines: int = 20) -> str:
    """The last lines of elements that failed, or of the first one where none did."""
    wrong = sorted(
        n for n, each in array.elements.items() if each.state is not ElementState.COMPLETED
    )
    told = []
    for element in (wrong or sorted(array.elements)[:1])[:_TAILS]:
        try:
            text = client.output(name, FOLDER, element, lines)
        except ServiceError as error:
            text = str(error)
        told += [f"{array.slurm_job_id}_{element}: {line}" for line in text.splitlines()]
    return "\n".join(told)

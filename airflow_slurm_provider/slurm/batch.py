"""Batch jobs that are not backfills: a script of the user's own, as an array of one or more.

The code for the workers' arrays also submits, finds and watches it. A single job is element 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from airflow_slurm_provider.slurm.array_state import ArrayState
from airflow_slurm_provider.slurm.client import SlurmClient
from airflow_slurm_provider.slurm.options import SlurmOptions
from airflow_slurm_provider.slurm.script import LOG_OPTIONS, MODULES, directives, exports
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.errors import ServiceError, UserError

#: The folder of all batch jobs in the remote folder.
FOLDER = "batch"
_RANGE = r"\d+(-\d+(:\d+)?)?"
_ARRAY = re.compile(rf"{_RANGE}(,{_RANGE})*(%\d+)?")
_LONGEST_NAME = 150
#: The last lines of at most this number of elements are shown.
_TAILS = 3


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
    # sbatch reads directives up to the first command. The last one of a name counts.
    head = next(
        (n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines)
    )
    throttle = f"%{options.throttle}" if options.throttle and "%" not in array else ""
    own = [f"--job-name={name}", f"--array={array}{throttle}", *LOG_OPTIONS]
    ours = directives([*options.arguments(), *own])
    modules = MODULES if "bash" in lines[0] else ()
    body_lines = [*ours, *exports(environment), *modules, *options.setup, *lines[head:]]
    return "\n".join([*lines[:head], *body_lines, ""])


def batch_name(label: str, token: str) -> str:
    """A Slurm job name that begins with `label`; other characters become ``-``."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", label).lstrip("._-")[:_LONGEST_NAME]
    return f"{plain or 'job'}.{token}"


def has_ended(array: ArrayState) -> bool:
    """Whether all elements have ended, and Slurm has recorded how."""
    return not array.unknown and not array.alive


def failure(array: ArrayState) -> str:
    """Why the array failed; empty where every element completed."""
    failed = _failed(array)
    if array.elements and not failed:
        return ""
    counts = Counter(array.elements[n].state.value for n in failed)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no record"
    exit_code = array.elements[failed[0]].exit_code if failed else ""
    how = f"; element {failed[0]} exited with {exit_code}" if exit_code else ""
    total = len(array.elements)
    return f"array {array.slurm_job_id}: {len(failed)} of {total} elements failed ({states}){how}"


def last_output(client: SlurmClient, name: str, array: ArrayState, lines: int = 20) -> str:
    """The last lines of elements that failed; of the first element where none did."""
    shown = []
    for element in (_failed(array) or sorted(array.elements)[:1])[:_TAILS]:
        try:
            text = client.output(name, FOLDER, element, lines)
        except ServiceError as error:
            text = str(error)
        shown += [f"{array.slurm_job_id}_{element}: {line}" for line in text.splitlines()]
    return "\n".join(shown)


def _failed(array: ArrayState) -> list[int]:
    elements = sorted(array.elements.items())
    return [number for number, element in elements if element.state is not ElementState.COMPLETED]

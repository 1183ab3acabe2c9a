"""Batch jobs that are not backfills: a script of the user's own, as an array of one or more.

It is always an array, so the code for the workers' arrays also submits, finds and watches it. A
single job is element 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from airflow_slurm_provider.slurm.array_state import ArrayState, Element
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
#: The last lines of at most this number of elements are shown.
_TAILS = 3


def batch_script(
    options: SlurmOptions, *, name: str, array: str, body: str, environment: Mapping[str, str]
) -> str:
    """The user's script with our options, which override those in the script.

    Args:
        options: the user's options.
        name: the Slurm job's name.
        array: elements, as ``sbatch --array`` takes them.
        body: a shell script, with or without ``#!`` and ``#SBATCH`` lines.
        environment: variables for it; no secrets.

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
    """A Slurm job name that begins with `label`; other characters become ``-``."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", label).lstrip("._-")[:_LONGEST_NAME]
    return f"{plain or 'job'}.{token}"


def has_ended(array: ArrayState) -> bool:
    """Whether all elements have ended, and Slurm has recorded how."""
    return not array.unknown and not array.alive


def failure(array: ArrayState) -> str:
    """Why the array failed; empty where every element completed."""
    failed = [n for n, element in sorted(array.elements.items()) if not _completed(element)]
    if array.elements and not failed:
        return ""
    counts = Counter(array.elements[n].state.value for n in failed)
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no record"
    first = failed[0] if failed else None
    exit_code = "" if first is None else array.elements[first].exit_code
    how = f"; element {first} exited with {exit_code}" if exit_code else ""
    total = len(array.elements)
    return f"array {array.slurm_job_id}: {len(failed)} of {total} elements failed ({states}){how}"


def last_output(client: SlurmClient, name: str, array: ArrayState, lines: int = 20) -> str:
    """The last lines of elements that failed; of the first element where none did."""
    numbers = sorted(array.elements)
    failed = [n for n in numbers if not _completed(array.elements[n])]
    shown = []
    for element in (failed or numbers[:1])[:_TAILS]:
        try:
            text = client.output(name, FOLDER, element, lines)
        except ServiceError as error:
            text = str(error)
        shown += [f"{array.slurm_job_id}_{element}: {line}" for line in text.splitlines()]
    return "\n".join(shown)


def _completed(element: Element) -> bool:
    return element.state is ElementState.COMPLETED

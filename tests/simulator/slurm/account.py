"""Variables of the cluster's account from which Slurm's commands read options.

An account sets them in its start-up files, and Slurm sets some inside a job. The product removes
them before each command. The twin's commands heed them, as the real ones do, where they are left.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

#: What accounts of the simulator set.
_HABITS: tuple[Mapping[str, str], ...] = (
    {"SQUEUE_PARTITION": "debug"},
    {"SCANCEL_STATE": "SUSPENDED"},
    {"SBATCH_ARRAY_INX": "0-0"},
    {"SQUEUE_ACCOUNT": "other", "SLURM_JOB_ID": "17"},
)


def drawn_variables(rng: random.Random) -> dict[str, str]:
    """The variables of an account; most have none."""
    if rng.random() < 0.7:
        return {}
    return {name: value for habit in rng.sample(_HABITS, 2) for name, value in habit.items()}


def hides_jobs(variables: Mapping[str, str]) -> bool:
    """Whether ``squeue`` leaves our jobs out: they belong to another partition or account."""
    return "SQUEUE_PARTITION" in variables or "SQUEUE_ACCOUNT" in variables


def cancels_nothing(variables: Mapping[str, str]) -> bool:
    """Whether ``scancel`` chooses none of our jobs, and exits with 0."""
    return "SCANCEL_STATE" in variables


def array_option(variables: Mapping[str, str]) -> str:
    """What ``sbatch`` takes in place of the script's ``--array``; empty for the script's own."""
    return variables.get("SBATCH_ARRAY_INX", "")

"""The environment of Slurm's commands, without the variables that change what they do.

They read options from variables. An account sets these in its start-up files, and inside a job
Slurm sets them itself: ``SCANCEL_STATE=SUSPENDED`` makes ``scancel`` cancel nothing and exit
with 0, ``SQUEUE_PARTITION`` hides jobs, ``SBATCH_JOB_NAME`` renames them. Here the command line
alone decides.

| variables | what happens to them |
| --- | --- |
| ``SLURM_CONF``, ``SLURM_CONF_SERVER``, ``SLURM_JWT`` | kept: they name the cluster and the user |
| others of Slurm's commands: ``SBATCH_…``, ``SLURM_…``, ``SQUEUE_…`` | removed |
| ``POSIXLY_CORRECT``, shell functions named like Slurm's commands | removed |
| ``LC_ALL``, ``LANGUAGE`` | removed; ``LC_ALL`` becomes ``LANG``: jobs keep their encoding |
| ``LC_MESSAGES``, ``LC_TIME`` | ``C``: error texts and times are in English |
| all others, ``TZ`` too | kept: ``begin: "20:00"`` is in the login node's time zone |
"""

from __future__ import annotations

import re
from collections.abc import Mapping

#: Where Slurm's configuration and the account's token are.
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
COMMANDS = ("sacct", "salloc", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
PREFIXES = ("SLURM", *(command.upper() for command in COMMANDS))
REMOVED = ("POSIXLY_CORRECT", "LANGUAGE", "LC_ALL")
ENGLISH = {"LC_MESSAGES": "C", "LC_TIME": "C"}

_SLURMS = re.compile(rf"({'|'.join(PREFIXES)})_\w*", re.ASCII)
_FUNCTION = re.compile(rf"BASH_FUNC_({'|'.join(COMMANDS)})\b.*", re.DOTALL)


def cleaned(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for one of Slurm's commands; changes nothing in place."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in REMOVED and not is_option(name) and not _FUNCTION.fullmatch(name)
    }
    if locale := environment.get("LC_ALL"):
        kept["LANG"] = locale
    return kept | ENGLISH


def is_option(name: str) -> bool:
    """Whether Slurm's commands may read an option from the variable of this name."""
    return name not in KEPT and _SLURMS.fullmatch(name) is not None

"""The environment of every command on the cluster, without what would change its meaning.

Slurm's commands read options from variables. An account sets them in its start-up files, and
inside a job Slurm sets them itself: ``SCANCEL_STATE=SUSPENDED`` makes ``scancel`` cancel
nothing and exit with 0, ``SQUEUE_PARTITION`` hides jobs, ``SBATCH_JOB_NAME`` renames them.
What is asked for is in the command alone. Each transport calls this module, and nobody else
has to think of it.

| variables | are |
| --- | --- |
| ``SLURM_CONF``, ``SLURM_JWT`` | kept: which cluster, and who asks |
| others of Slurm's commands: ``SBATCH_…``, ``SLURM_…``, ``SQUEUE_…`` | removed |
| ``POSIXLY_CORRECT``, shell functions named like Slurm's commands | removed |
| ``LC_ALL``, ``LANGUAGE`` | removed; ``LC_ALL`` becomes ``LANG``: jobs keep their encoding |
| ``LC_MESSAGES``, ``LC_TIME`` | ``C``: error texts are compared |
| all others, ``TZ`` too | kept: ``begin: "20:00"`` is the login node's time |
"""

from __future__ import annotations

import re
from collections.abc import Mapping

#: Where Slurm's configuration and the account's token are.
_KEPT = ("SLURM_CONF", "SLURM_JWT")
_COMMANDS = ("sacct", "salloc", "sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
_PREFIXES = ("SLURM", *(each.upper() for each in _COMMANDS))
_SLURMS = re.compile(rf"({'|'.join(_PREFIXES)})_\w*", re.ASCII)
_FUNCTION = re.compile(rf"BASH_FUNC_({'|'.join(_COMMANDS)})\b.*", re.DOTALL)
_REMOVED = ("POSIXLY_CORRECT", "LANGUAGE", "LC_ALL")
_ENGLISH = {"LC_MESSAGES": "C", "LC_TIME": "C"}

#: For a POSIX shell, in one line and without ``!``, so that any login shell hands it on.
CLEAN = (
    r"for each in $(env | sed -n 's/^\([A-Z]*_[A-Za-z0-9_]*\)=.*/\1/p'); do case $each in "
    f"{'|'.join(_KEPT)}) ;; {'|'.join(f'{each}_*' for each in _PREFIXES)}) unset $each ;; "
    "esac; done; "
    f"unset -f {' '.join(_COMMANDS)} 2>/dev/null; "
    '[ -z "$LC_ALL" ] || export LANG="$LC_ALL"; '
    f"unset {' '.join(_REMOVED)}; "
    f"export {' '.join(f'{name}={value}' for name, value in _ENGLISH.items())}; "
)


def cleaned(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a command on the cluster; what `CLEAN` does in a shell."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in _REMOVED and not _changes_commands(name)
    }
    if locale := environment.get("LC_ALL"):
        kept["LANG"] = locale
    return kept | _ENGLISH


def _changes_commands(name: str) -> bool:
    if name in _KEPT:
        return False
    return bool(_SLURMS.fullmatch(name) or _FUNCTION.fullmatch(name))

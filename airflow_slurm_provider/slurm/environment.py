"""The clean environment of every command on the cluster, for a shell on the login node.

Only transports call this module. `slurm_worker.node.slurm_variables` lists the variables that are
removed or kept, and why.
"""

from __future__ import annotations

from slurm_worker.node.slurm_variables import COMMANDS, ENGLISH, KEPT, PREFIXES, REMOVED, cleaned

__all__ = ["CLEAN", "cleaned"]

#: `cleaned` for a POSIX shell, in one line and without ``!``, so that any login shell passes it.
CLEAN = (
    r"for each in $(env | sed -n 's/^\([A-Z]*_[A-Za-z0-9_]*\)=.*/\1/p'); do case $each in "
    f"{'|'.join(KEPT)}) ;; {'|'.join(f'{each}_*' for each in PREFIXES)}) unset $each ;; "
    "esac; done; "
    f"unset -f {' '.join(COMMANDS)} 2>/dev/null; "
    '[ -z "$LC_ALL" ] || export LANG="$LC_ALL"; '
    f"unset {' '.join(REMOVED)}; "
    f"export {' '.join(f'{name}={value}' for name, value in ENGLISH.items())}; "
)

"""What Slurm's commands say when they fail."""

from __future__ import annotations

import re

from airflow_slurm_provider.slurm.transport import CommandResult
from slurm_worker.errors import UserError

_MOST_CHARACTERS = 400
#: What `submission` prints of a folder that it refuses.
_UNSAFE = re.compile(r"^(odd|owner|open) (/.*)$", re.MULTILINE)


def error_text(result: CommandResult) -> str:
    """A command's complaint in one line."""
    text = result.stderr if result.stderr.strip() else result.stdout
    lines = [
        re.sub(r"^s(batch|queue|acct|cancel): (error: )?", "", line.strip())
        for line in text.splitlines()
        if line.strip()
    ]
    return "; ".join(lines)[:_MOST_CHARACTERS] or f"exit code {result.code}"


def unsafe_folder(result: CommandResult) -> UserError:
    """What `submission` says of a folder that another user can change, and what to do."""
    found = _UNSAFE.search(result.stderr)
    why, path = found.groups() if found else ("odd", "")
    name = "name a folder of the account's own, such as .airflow-slurm in its home"
    if why == "odd":
        return UserError(
            f"cluster.remote_dir: it can't be seen who may change a part of its path; {name}"
        )
    if why == "open":
        return UserError(
            f"cluster.remote_dir: other users can write into {path!r}, and so decide what jobs "
            f"run; look for files that are not yours, run chmod go-w there, or {name}"
        )
    return UserError(
        f"cluster.remote_dir: {path!r} belongs to another user, who can decide what jobs run; "
        f"{name}"
    )


def keeps_no_accounting(result: CommandResult) -> bool:
    """Whether ``sacct`` has failed because the site stores no accounting."""
    return bool(result.code) and ("ccounting storage is disabled" in result.stderr + result.stdout)

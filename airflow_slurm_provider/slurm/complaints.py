"""What Slurm's commands say when they fail."""

from __future__ import annotations

import re

from airflow_slurm_provider.slurm.transport import CommandResult

_MOST_CHARACTERS = 400


def said(result: CommandResult) -> str:
    """A command's complaint in one line."""
    text = result.stderr if result.stderr.strip() else result.stdout
    lines = [
        re.sub(r"^s(batch|queue|acct|cancel): (error: )?", "", line.strip())
        for line in text.splitlines()
        if line.strip()
    ]
    return "; ".join(lines)[:_MOST_CHARACTERS] or f"exit code {result.code}"


def keeps_no_accounting(result: CommandResult) -> bool:
    """Whether ``sacct`` has failed because the site stores no accounting."""
    return bool(result.code) and ("ccounting storage is disabled" in result.stderr + result.stdout)

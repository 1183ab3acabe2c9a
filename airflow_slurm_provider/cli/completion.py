"""`slurmctl completion`: shell completion of commands, options and job ids."""

from __future__ import annotations

import click

from airflow_slurm_provider.cli.completers import SHELLS, script
from airflow_slurm_provider.cli.options import Common, common_options
from airflow_slurm_provider.cli.output import emit, show


@click.command(epilog="\b\nExample:\n  slurmctl completion bash >> ~/.bashrc")
@click.argument("shell", type=click.Choice(SHELLS))
@common_options
def completion(common: Common, shell: str) -> int:
    """Print a script that makes SHELL complete commands, options, profiles and job ids."""
    text = script(click.get_current_context().find_root().command, shell)
    if common.as_json:
        emit(True, {"shell": shell, "script": text}, [])
    else:
        show(text)
    return 0

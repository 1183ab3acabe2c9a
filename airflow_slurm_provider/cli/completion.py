"""`slurmctl completion`: shell completion of commands, options and job ids."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from airflow_slurm_provider.cli.options import Common, command
from airflow_slurm_provider.cli.rendering.output import emit

SHELLS = ("bash", "zsh", "fish")
#: The environment variable with which the script requests completions.
VARIABLE = "_SLURMCTL_COMPLETE"


@command("slurmctl completion bash >> ~/.bashrc")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(common: Common, shell: str) -> int:
    """Print a script that makes SHELL complete commands, options, profiles and job ids."""
    kind = get_completion_class(shell)
    assert kind is not None, "click knows all of SHELLS"
    root = click.get_current_context().find_root().command
    script = kind(root, {}, "slurmctl", VARIABLE).source()
    return emit(common.as_json, {"shell": shell, "script": script}, script)

"""What the shell completes, and the script that teaches it to: `slurmctl completion bash`.

Job ids come from the table's register of jobs: one request. Where that fails, or takes
longer than somebody at a prompt will wait, nothing is completed and nothing is said.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Any

import click
from click.shell_completion import get_completion_class

from airflow_slurm_provider.cli.profiles import profiles, site_file

SHELLS = ("bash", "zsh", "fish")
#: The variable by which the script asks for completions.
VARIABLE = "_SLURMCTL_COMPLETE"
_PATIENCE_S = 3.0
_MOST_JOBS = 200


def complete_jobs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 click's signature
    """The ids of the newest jobs that begin so."""
    found: list[str] = []

    def ask() -> None:
        # At a prompt, no completion is the only good answer to whatever goes wrong.
        with suppress(Exception):
            found.extend(_newest(ctx.params))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_PATIENCE_S)
    return [each for each in list(found) if each.startswith(incomplete)]


def complete_profiles(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 click's signature
    """The profiles that begin so."""
    return [each for each in profiles() if each.startswith(incomplete)]


def script(group: click.Command, shell: str) -> str:
    """The script that teaches a shell to complete `slurmctl`."""
    kind = get_completion_class(shell)
    assert kind is not None, "click knows each of SHELLS"
    return kind(group, {}, "slurmctl", VARIABLE).source()


def _newest(options: dict[str, Any]) -> list[str]:
    from airflow_slurm_provider.coordinator.services import open_services
    from airflow_slurm_provider.coordinator.spec.site import load_site
    from slurm_worker.protocol.job_table import newest_jobs

    site = load_site(site_file(options.get("site"), options.get("profile"), os.environ))
    services = open_services(site)
    try:
        return [str(each) for each in newest_jobs(services.rows, _MOST_JOBS)]
    finally:
        services.close()

"""Shell completion, and the script that enables it: `slurmctl completion bash`.

Job ids come from the table's register of jobs: one request. If that fails, or takes longer than
a person at a prompt will wait, nothing is completed and nothing is printed.
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
#: The environment variable with which the script requests completions.
VARIABLE = "_SLURMCTL_COMPLETE"
_MOST_JOBS = 200


def complete_jobs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 click's signature
    """The ids of the newest jobs with this prefix."""
    return newest_job_ids(ctx.params, incomplete)


def newest_job_ids(options: dict[str, Any], prefix: str, timeout_s: float = 3.0) -> list[str]:
    """The ids of the newest jobs with this prefix; empty if they can't be read in time.

    Args:
        options: the command's options so far, which choose the site.
        prefix: the typed part of the id.
        timeout_s: seconds to wait for the table.
    """
    found: list[str] = []

    def ask() -> None:
        # At a prompt, no completion is the only good answer to whatever goes wrong.
        with suppress(Exception):
            found.extend(_newest(options))

    query = threading.Thread(target=ask, daemon=True)
    query.start()
    query.join(timeout_s)
    return [job for job in list(found) if job.startswith(prefix)]


def complete_profiles(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 click's signature
    """The profiles with this prefix."""
    return [name for name in profiles() if name.startswith(incomplete)]


def script(group: click.Command, shell: str) -> str:
    """The script that makes a shell complete `slurmctl`."""
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
        return [str(job) for job in newest_jobs(services.rows, _MOST_JOBS)]
    finally:
        services.close()

"""What every command shares: its common options, and the services that they open.

Imports click only; the coordinator (boto3, pydantic) is imported when services are opened.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

from airflow_slurm_provider.cli.completers import complete_jobs, complete_profiles
from airflow_slurm_provider.cli.profiles import site_file
from slurm_worker.errors import ErrorClass, UserError

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.services import Services

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Common:
    """The options of every command.

    Args:
        site: the site file.
        as_json: print one JSON document on stdout instead of text.
    """

    site: Path
    as_json: bool

    @property
    def actor(self) -> str:
        """The actor for the audit log: this user on this machine."""
        import socket

        return f"slurmctl {_user()}@{socket.gethostname()}"

    @contextmanager
    def services(self) -> Iterator[Services]:
        """The table, the bucket and the cluster of the site, closed at the end."""
        from airflow_slurm_provider.coordinator.services import open_services
        from airflow_slurm_provider.coordinator.spec.site import load_site

        services = open_services(load_site(self.site))
        try:
            yield services
        finally:
            services.close()


def common_options(function: Callable[Concatenate[Common, P], int]) -> Callable[..., int]:
    """Give a command ``--site``, ``--profile`` and ``--json``, as its first argument."""

    @click.option(
        "--site",
        metavar="FILE",
        help="Site file, with table, bucket and cluster. [env: SLURMCTL_CONFIG]",
    )
    @click.option(
        "--profile",
        metavar="NAME",
        shell_complete=complete_profiles,
        help="Use ~/.config/slurmctl/NAME.yaml. [env: SLURMCTL_PROFILE]",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout instead of text.")
    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> int:
        site, profile = kwargs.pop("site"), kwargs.pop("profile")
        common = Common(
            site=site_file(_text(site), _text(profile), os.environ),
            as_json=bool(kwargs.pop("as_json")),
        )
        return function(common, *args, **kwargs)

    return command


def job_argument(function: F) -> F:
    """Give a command its JOB, whose id the shell completes."""
    return click.argument("job", shell_complete=complete_jobs)(function)


def error_classes(value: str | None, option: str = "--errors") -> list[str] | None:
    """Read ``network,timeout``; None where nothing is given: the retry policy decides.

    Raises:
        UserError: if a name is not an error class.
    """
    if value is None:
        return None
    known = [error_class.value for error_class in ErrorClass]
    names = [name.strip().lower() for name in value.split(",") if name.strip()]
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise UserError(
            f"{option}: {(wrong or [value])[0]!r} is not an error class; "
            f"choose from {', '.join(known)}"
        )
    return list(dict.fromkeys(names))


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # a container whose user has no name

"""What every command shares: its common options, and the services that they lead to.

Imports click only; the coordinator (boto3, pydantic) is imported when services are opened.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import click

from slurm_worker.errors import ErrorClass, UserError

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.services import Services

P = ParamSpec("P")

DEFAULT_SITE = "~/.config/slurmctl/site.yaml"


@dataclass(frozen=True, slots=True)
class Common:
    """The options of every command.

    Args:
        site: the site file.
        as_json: print one JSON document on stdout instead of text.
    """

    site: Path
    as_json: bool

    @contextmanager
    def services(self) -> Iterator[Services]:
        """The table, the bucket and the cluster of the site, closed at the end."""
        from airflow_slurm_provider.coordinator.services import open_services
        from airflow_slurm_provider.coordinator.site import load_site

        services = open_services(load_site(self.site))
        try:
            yield services
        finally:
            services.close()


def common_options(function: Callable[Concatenate[Common, P], int]) -> Callable[..., int]:
    """Give a command ``--site`` and ``--json``, handed to it as its first argument."""

    @click.option(
        "--site",
        metavar="FILE",
        envvar="SLURMCTL_CONFIG",
        default=DEFAULT_SITE,
        show_default=True,
        show_envvar=True,
        help="Site file: task table, bucket and cluster.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
    @functools.wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> int:
        common = Common(
            site=Path(str(kwargs.pop("site"))).expanduser(), as_json=bool(kwargs.pop("as_json"))
        )
        return function(common, *args, **kwargs)

    return command


def error_classes(value: str | None, option: str = "--errors") -> list[str] | None:
    """Read ``network,timeout``; None, for every class that has a retry policy, where not given.

    Raises:
        UserError: if a name is not an error class.
    """
    if value is None:
        return None
    known = [each.value for each in ErrorClass]
    names = [name.strip().lower() for name in value.split(",") if name.strip()]
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise UserError(
            f"{option}: {(wrong or [value])[0]!r} is not an error class; "
            f"choose from {', '.join(known)}"
        )
    return list(dict.fromkeys(names))

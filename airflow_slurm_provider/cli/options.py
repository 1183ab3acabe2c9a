"""What commands share: their options, the shell's completions, and the services that they open.

Imports click only; the coordinator (boto3, pydantic) is imported when services are opened.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import click

from airflow_slurm_provider.cli.profiles import profiles, site_file
from slurm_worker.errors import ErrorClass, UserError
from slurm_worker.protocol.keys import JobId, check_job_id

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.services import Services

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])
_MOST_JOBS = 200


@dataclass(frozen=True, slots=True)
class Common:
    """The options of every command; `as_json`: print one JSON document instead of text."""

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


def newest_job_ids(options: dict[str, Any], prefix: str, timeout_s: float = 3.0) -> list[str]:
    """The ids of the newest jobs with this prefix, from the table: one request.

    Empty if they can't be read in time: at a prompt, no completion is the only good answer to
    whatever goes wrong.

    Args:
        options: the command's options so far, which choose the site.
        prefix: the typed part of the id.
        timeout_s: seconds to wait for the table.
    """
    found: list[str] = []

    def query() -> None:
        with suppress(Exception):
            from slurm_worker.protocol.job_table import newest_jobs

            site = site_file(options.get("site"), options.get("profile"), os.environ)
            with Common(site, as_json=False).services() as services:
                found.extend(map(str, newest_jobs(services.rows, _MOST_JOBS)))

    thread = threading.Thread(target=query, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return [job for job in list(found) if job.startswith(prefix)]


def complete_jobs(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """The ids of the newest jobs with this prefix."""
    return newest_job_ids(ctx.params, incomplete)


def _complete_profiles(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in profiles() if name.startswith(incomplete)]


def check_job(_ctx: click.Context, param: click.Parameter, value: str | None) -> JobId | None:
    """Check the job id of an argument or option, if it is given."""
    label = param.opts[0] if isinstance(param, click.Option) else "JOB"
    return None if value is None else check_job_id(value, label)


job_argument = click.argument("job", shell_complete=complete_jobs, callback=check_job)
optional_job = click.argument(
    "job", required=False, shell_complete=complete_jobs, callback=check_job
)


def number(
    name: str, kind: click.IntRange | click.FloatRange, text: str, default: float | None = None
) -> Callable[[F], F]:
    """Give a command an option whose value is a count, or a time in seconds."""
    return click.option(
        name,
        metavar="N" if isinstance(kind, click.IntRange) else "SECONDS",
        type=kind,
        default=default,
        show_default=default is not None,
        help=text,
    )


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
        shell_complete=_complete_profiles,
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

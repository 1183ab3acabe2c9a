"""What commands share: their options, the shell's completions, and the services that they open.

Imports click only; the coordinator (boto3, pydantic) is imported when services are opened.
"""

from __future__ import annotations

import difflib
import functools
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from slurm_worker.errors import ErrorClass, UserError
from slurm_worker.protocol.keys import JobId, check_job_id

if TYPE_CHECKING:
    from airflow_slurm_provider.coordinator.services import Services

F = TypeVar("F", bound=Callable[..., Any])
_MOST_JOBS = 200
_FOLDER = "~/.config/slurmctl"


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

    def services(self) -> AbstractContextManager[Services]:
        """The table, the bucket and the cluster of the site, closed at the end."""
        from airflow_slurm_provider.coordinator.services import open_services
        from airflow_slurm_provider.coordinator.spec.site import load_site

        return closing(open_services(load_site(self.site)))


def site_file(site: str | None, profile: str | None, environment: Mapping[str, str]) -> Path:
    """Which site file a command reads; it need not exist.

    Each file in ``~/.config/slurmctl`` is a profile: ``lab.yaml`` is the profile ``lab``.

    | order | given by | means |
    | --- | --- | --- |
    | 1 | ``--site FILE`` or ``--profile NAME`` | that file |
    | 2 | ``SLURMCTL_CONFIG`` | that file |
    | 3 | ``SLURMCTL_PROFILE`` | the file of this name |
    | 4 | nothing | ``~/.config/slurmctl/site.yaml`` |

    Raises:
        UserError: if both options are given, or the profile does not exist.
    """
    if site is not None and profile is not None:
        raise UserError(f"--profile: {profile!r} can't be used with --site {site}; give only one")
    if site is not None:
        return Path(site).expanduser()
    if profile is not None:
        return _named(profile, "--profile")
    if environment.get("SLURMCTL_CONFIG"):
        return Path(environment["SLURMCTL_CONFIG"]).expanduser()
    if environment.get("SLURMCTL_PROFILE"):
        return _named(environment["SLURMCTL_PROFILE"], "SLURMCTL_PROFILE")
    return _path("site")


def profiles() -> list[str]:
    """The names of the existing profiles."""
    return sorted(file.stem for file in Path(_FOLDER).expanduser().glob("*.yaml"))


def newest_job_ids(options: dict[str, Any], prefix: str, timeout_s: float = 3.0) -> list[str]:
    """The ids of the newest jobs with this prefix, from the table: one request.

    Empty if they can't be read within `timeout_s` seconds: at a prompt, no completion is the only
    good answer to whatever goes wrong. The command's `options` so far choose the site.
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


def job_option(name: str, text: str) -> Callable[[F], F]:
    """Give a command an option whose value is a job id."""
    return click.option(
        name, metavar="JOB", shell_complete=complete_jobs, callback=check_job, help=text
    )


_COMMON_OPTIONS = (
    click.Option(
        ["--site"],
        metavar="FILE",
        help="Site file, with table, bucket and cluster (example: docs/guides/cli.md). "
        "[env: SLURMCTL_CONFIG]",
    ),
    click.Option(
        ["--profile"],
        metavar="NAME",
        shell_complete=_complete_profiles,
        help="Use ~/.config/slurmctl/NAME.yaml. [env: SLURMCTL_PROFILE]",
    ),
    click.Option(["--json", "as_json"], is_flag=True, help="Print JSON on stdout instead of text."),
)


def seconds(
    name: str, text: str, default: float | None = None, *, least: float = 0, above: bool = False
) -> Callable[[F], F]:
    """Give a command an option whose value is a time: at least `least`, or `above` it."""
    kind = click.FloatRange(min=least, min_open=above)
    return click.option(
        name, metavar="SECONDS", type=kind, default=default, show_default=True, help=text
    )


def count(name: str, text: str, default: int | None = None, *, least: int = 1) -> Callable[[F], F]:
    """Give a command an option whose value is a whole number, at least `least`."""
    kind = click.IntRange(min=least)
    return click.option(name, metavar="N", type=kind, default=default, show_default=True, help=text)


def command(*examples: str) -> Callable[[Callable[..., int]], click.Command]:
    """Make a function a command, with examples in its help.

    Its first argument is a `Common`, from ``--site``, ``--profile`` and ``--json``.
    """

    def decorate(function: Callable[..., int]) -> click.Command:
        @functools.wraps(function)
        def run(*, site: str | None, profile: str | None, as_json: bool, **options: Any) -> int:
            return function(Common(site_file(site, profile, os.environ), as_json), **options)

        made = click.command(epilog="\n  ".join(("\b\nExample:", *examples)))(run)
        made.params += _COMMON_OPTIONS
        return made

    return decorate


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


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())  # a container whose user has no name


def _named(name: str, source: str) -> Path:
    known = profiles()
    if name in known:
        return _path(name)
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    existing = f"it has {', '.join(known)}" if known else "it has none yet"
    raise UserError(f"{source}: there is no profile {name!r} in {_FOLDER}; {hint}{existing}")


def _path(name: str) -> Path:
    return Path(_FOLDER).expanduser() / f"{name}.yaml"

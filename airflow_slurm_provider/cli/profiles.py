"""Which site file a command reads.

Each file in ``~/.config/slurmctl`` is a profile, by its name: ``lab.yaml`` is ``lab``. An
option goes over the environment, that over the default; within each, a file over a name.

| order | given by | means |
| --- | --- | --- |
| 1 | ``--site FILE`` or ``--profile NAME`` | that file |
| 2 | ``SLURMCTL_CONFIG`` | that file |
| 3 | ``SLURMCTL_PROFILE`` | the file of this name |
| 4 | nothing | ``~/.config/slurmctl/site.yaml`` |
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path

from slurm_worker.errors import UserError

FOLDER = "~/.config/slurmctl"
DEFAULT_PROFILE = "site"


def site_file(site: str | None, profile: str | None, environment: Mapping[str, str]) -> Path:
    """The site file, which need not be there.

    Args:
        site: ``--site``.
        profile: ``--profile``.
        environment: the process's.

    Raises:
        UserError: if both options are given, or there is no such profile.
    """
    if site is not None and profile is not None:
        raise UserError(f"--profile: {profile!r} and --site {site} exclude each other; give one")
    if site is not None:
        return Path(site).expanduser()
    if profile is not None:
        return _named(profile, "--profile")
    if environment.get("SLURMCTL_CONFIG"):
        return Path(environment["SLURMCTL_CONFIG"]).expanduser()
    if environment.get("SLURMCTL_PROFILE"):
        return _named(environment["SLURMCTL_PROFILE"], "SLURMCTL_PROFILE")
    return _path(DEFAULT_PROFILE)


def profiles() -> list[str]:
    """The names of the profiles that there are."""
    return sorted(each.stem for each in Path(FOLDER).expanduser().glob("*.yaml"))


def _named(name: str, source: str) -> Path:
    known = profiles()
    if name in known:
        return _path(name)
    near = difflib.get_close_matches(name, known, 1)
    mend = f"did you mean {near[0]!r}? " if near else ""
    there = f"there are {', '.join(known)}" if known else "there is none yet"
    raise UserError(f"{source}: {name!r} is no profile; {mend}{there} in {FOLDER}")


def _path(name: str) -> Path:
    return Path(FOLDER).expanduser() / f"{name}.yaml"

"""Which site file a command reads.

Each file in ``~/.config/slurmctl`` is a profile: ``lab.yaml`` is the profile ``lab``. Options come
before environment variables, and these before the default:

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
    """The site file, which need not exist, by the options and the process's environment.

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
    return _path(DEFAULT_PROFILE)


def profiles() -> list[str]:
    """The names of the existing profiles."""
    return sorted(file.stem for file in Path(FOLDER).expanduser().glob("*.yaml"))


def _named(name: str, source: str) -> Path:
    known = profiles()
    if name in known:
        return _path(name)
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    existing = f"it has {', '.join(known)}" if known else "it has none yet"
    raise UserError(f"{source}: there is no profile {name!r} in {FOLDER}; {hint}{existing}")


def _path(name: str) -> Path:
    return Path(FOLDER).expanduser() / f"{name}.yaml"

"""Facts about a cluster for `slurmctl doctor`: settings, accounting, the login node's folder.

Each method costs one command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from airflow_slurm_provider.slurm import submission
from airflow_slurm_provider.slurm.transport import (
    Transport,
    error_text,
    keeps_no_accounting,
    unsafe_folder,
)
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.node.slurm_variables import is_option

_SETTING = re.compile(r"^(\w+)[ \t]*=[ \t]*(.*?)[ \t]*$", re.MULTILINE)
_PAIR = re.compile(r"(\w+)=(\S*)")
#: The command's parent has the environment as it was before the transport cleaned it.
_PARENTS_VARIABLES = (
    r"tr '\0' '\n' < /proc/$PPID/environ 2>/dev/null | sed -n 's/^\([A-Z0-9_]*\)=.*/\1/p'"
)
_REMOVE = 'cd "$1" 2>/dev/null && rm -rf "./jobs/${2:?}"; true'


@dataclass(frozen=True, slots=True)
class Folder:
    """The project's folder on the login node, and the type of its file system where known."""

    path: str
    filesystem: str


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of the cluster."""

    name: str
    default: bool
    grace_s: int  #: its ``GraceTime``
    preempt_mode: str


class Survey:
    """Queries about a cluster, over the transport of its client.

    All raise `ServiceError` if the cluster can't be reached.
    """

    def __init__(self, transport: Transport, remote_dir: str) -> None:
        self._transport = transport
        self._remote_dir, self._folder = remote_dir, remote_dir.removeprefix("~/")

    def settings(self) -> dict[str, str]:
        """The values of ``scontrol show config``; empty where the account may not read them."""
        result = self._transport.run("scontrol show config")
        return {} if result.code else dict(_SETTING.findall(result.stdout))

    def partitions(self) -> list[Partition]:
        """The partitions that the account may see."""
        result = self._transport.run("scontrol -o show partition")
        lines = [] if result.code else result.stdout.splitlines()
        return [
            Partition(
                name=found["PartitionName"],
                default=found.get("Default") == "YES",
                grace_s=int(grace) if (grace := found.get("GraceTime", "0")).isdigit() else 0,
                preempt_mode=found.get("PreemptMode", "OFF"),
            )
            for line in lines
            if "PartitionName" in (found := dict(_PAIR.findall(line)))
        ]

    def ignored_variables(self) -> list[str]:
        """The account's variables that commands don't get; none on a node without ``/proc``."""
        names = self._transport.run(_PARENTS_VARIABLES).stdout.split()
        return sorted({name for name in names if is_option(name)})

    def accounting(self) -> bool:
        """Whether ``sacct`` answers; false where the site keeps no accounting."""
        result = self._transport.run("sacct -nXP -S now-1hours -o JobID")
        if keeps_no_accounting(result):
            return False
        if result.code:
            raise ServiceError(f"sacct failed: {error_text(result)}")
        return True

    def try_folder(self, unique: str) -> Folder:
        """Write into the project's folder, which is made if absent.

        Raises:
            UserError: if it can't be written.
        """
        command = submission.one_line(submission.TRY_FOLDER, self._folder, unique)
        result = self._transport.run(command)
        if result.code == submission.SubmitExit.UNSAFE:
            raise unsafe_folder(result)
        if result.code:
            raise UserError(
                f"cluster.remote_dir: {self._remote_dir!r} can't be written on the login node "
                f"({error_text(result)})",
                "name a folder that belongs to the account",
            )
        path, filesystem = [*result.stdout.splitlines(), ""][:2]
        return Folder(path, filesystem)

    def remove(self, folder: str) -> None:
        """Remove a folder of submissions with its content, including credentials."""
        self._transport.run(submission.one_line(_REMOVE, self._folder, folder))

"""Ways to run a command on the cluster; over SSH, see `slurm/ssh.py`."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from airflow_slurm_provider.slurm.environment import cleaned
from slurm_worker.errors import ServiceError, UserError


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command on the cluster said."""

    code: int
    stdout: str
    stderr: str

    @classmethod
    def of_bytes(cls, code: int, stdout: bytes, stderr: bytes) -> CommandResult:
        """What it said in whatever encoding."""
        return cls(code, stdout.decode(errors="replace"), stderr.decode(errors="replace"))


class Transport(Protocol):
    """Runs shell commands on the cluster; safe to share between threads.

    Their environment is the account's, as `environment` cleans it.
    """

    def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
        """Run `command` in a shell.

        Raises:
            ServiceError: if the cluster can't be reached, or the answer did not come: then
                the command may or may not have run.
            UserError: if the login is refused or the host's key is not the known one.
        """

    def close(self) -> None:
        """Close the connection, if any."""


class LocalTransport:
    """This machine is the login node.

    A command is a session of its own and is never killed: like one over SSH it goes on
    when its caller is interrupted or has waited too long.

    Args:
        environment: variables beside this process's own.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = dict(environment or {})

    def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
        """See `Transport.run`."""
        home = _home()
        try:
            started = subprocess.Popen(
                ["/bin/sh", "-c", command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=cleaned({**os.environ, **self._environment}),
                cwd=home,
                start_new_session=True,
            )
        except OSError as error:
            raise ServiceError(
                f"cluster: a command can't be started ({error}); try again"
            ) from error
        try:
            stdout, stderr = started.communicate(stdin, timeout)
        except subprocess.TimeoutExpired as error:
            raise ServiceError(no_answer("cluster", timeout, command)) from error
        return CommandResult.of_bytes(started.returncode, stdout, stderr)

    def close(self) -> None:
        """See `Transport.close`: there is nothing to close."""


def _home() -> Path:
    """The home folder, in which commands start, as those over SSH do.

    Raises:
        UserError: if there is none.
    """
    try:
        home = Path.home()
    except RuntimeError as error:
        raise UserError("cluster: this account has no home folder; set HOME to one") from error
    if not os.access(home, os.X_OK) or not home.is_dir():
        raise UserError(
            f"cluster: HOME: {str(home)!r} is no folder that this account can enter; set it to one"
        )
    return home


class OnFirstUse:
    """A transport that is made when the first command is run.

    Args:
        make: makes it.
    """

    def __init__(self, make: Callable[[], Transport]) -> None:
        self._make = make
        self._made: Transport | None = None
        self._lock = threading.Lock()

    def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
        """See `Transport.run`."""
        with self._lock:
            if self._made is None:
                self._made = self._make()
        return self._made.run(command, stdin, timeout)

    def close(self) -> None:
        """See `Transport.close`."""
        if self._made is not None:
            self._made.close()


def no_answer(where: str, timeout: float, command: str) -> str:
    """That a command's answer did not come in time."""
    return f"{where}: no answer within {timeout:g} s to: {command.splitlines()[0][:100]}"

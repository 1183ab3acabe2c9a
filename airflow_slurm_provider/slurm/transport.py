"""Ways to run a command on the cluster, and how its errors read; over SSH, see `slurm/ssh.py`."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from slurm_worker.errors import ServiceError, UserError
from slurm_worker.node.slurm_variables import COMMANDS, ENGLISH, KEPT, PREFIXES, REMOVED, cleaned

_MOST_CHARACTERS = 400
#: What commands print before their errors.
_OWN_NAME = re.compile(r"^s(batch|queue|acct|cancel): (error: )?")
#: What `submission` prints about a folder that it refuses.
_UNSAFE = re.compile(r"^(odd|owner|open) (/.*)$", re.MULTILINE)

#: `cleaned`, the environment of every command on the cluster, for a POSIX shell, in one line and
#: without ``!``, so that any login shell passes it.
CLEAN = (
    r"for each in $(env | sed -n 's/^\([A-Z]*_[A-Za-z0-9_]*\)=.*/\1/p'); do case $each in "
    f"{'|'.join(KEPT)}) ;; {'|'.join(f'{prefix}_*' for prefix in PREFIXES)}) unset $each ;; "
    "esac; done; "
    f"unset -f {' '.join(COMMANDS)} 2>/dev/null; "
    '[ -z "$LC_ALL" ] || export LANG="$LC_ALL"; '
    f"unset {' '.join(REMOVED)}; "
    f"export {' '.join(f'{name}={value}' for name, value in ENGLISH.items())}; "
)


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Exit code and output of a command on the cluster."""

    code: int
    stdout: str
    stderr: str

    @classmethod
    def of_bytes(cls, code: int, stdout: bytes, stderr: bytes) -> CommandResult:
        """From output in any encoding."""
        return cls(code, stdout.decode(errors="replace"), stderr.decode(errors="replace"))


class Transport(Protocol):
    """Runs shell commands on the cluster; safe to share between threads.

    Commands get the account's environment, cleaned. `slurm_worker.node.slurm_variables` lists the
    variables that are removed or kept, and why.
    """

    def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
        """Run `command` in a shell.

        Raises:
            ServiceError: if the cluster can't be reached or does not answer; the command may or
                may not have run.
            UserError: if the login is refused or the host's key is not the known one.
        """

    def close(self) -> None:
        """Close the connection, if any."""


class LocalTransport:
    """This machine is the login node.

    A command has its own session and is never killed. Like one over SSH it continues when its
    caller is interrupted or has waited too long. It gets `environment` over this process's own.
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
                f"cluster: the command did not start ({error})", "try again"
            ) from error
        try:
            stdout, stderr = started.communicate(stdin, timeout)
        except subprocess.TimeoutExpired as error:
            raise ServiceError(no_answer("cluster", timeout, command)) from error
        return CommandResult.of_bytes(started.returncode, stdout, stderr)

    def close(self) -> None:
        """See `Transport.close`: there is nothing to close."""


def _home() -> Path:
    """The home folder, in which commands start, as over SSH."""
    try:
        home = Path.home()
    except RuntimeError as error:
        raise UserError("cluster: this account has no home folder", "set HOME to one") from error
    if not os.access(home, os.X_OK) or not home.is_dir():
        raise UserError(
            f"cluster: HOME: this account can't enter {str(home)!r}",
            "set HOME to one of its folders",
        )
    return home


class OnFirstUse:
    """A transport that is opened for the first command."""

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
    """The message for a command that did not answer in time."""
    return f"{where}: no answer within {timeout:g} s to: {command.splitlines()[0][:100]}"


def error_text(result: CommandResult) -> str:
    """The error output of a command in one line."""
    text = result.stderr if result.stderr.strip() else result.stdout
    words = (_OWN_NAME.sub("", line.strip()) for line in text.splitlines())
    return "; ".join(filter(None, words))[:_MOST_CHARACTERS] or f"exit code {result.code}"


def unsafe_folder(result: CommandResult) -> UserError:
    """The error for a folder that another user can change; `submission` printed the reason."""
    found = _UNSAFE.search(result.stderr)
    reason, path = found.groups() if found else ("odd", "")
    problem = {
        "odd": "can't tell who may change a part of its path",
        "open": f"other users can write into {path!r} and change what jobs run",
        "owner": f"{path!r} belongs to another user, who can change what jobs run",
    }[reason]
    fix = "name a folder of this account, such as .airflow-slurm in its home folder"
    if reason == "open":
        fix = f"check it for files that are not yours and run chmod go-w on it, or {fix}"
    return UserError(f"cluster.remote_dir: {problem}", fix)


def keeps_no_accounting(result: CommandResult) -> bool:
    """Whether ``sacct`` has failed because the site stores no accounting."""
    return bool(result.code) and "ccounting storage is disabled" in result.stderr + result.stdout

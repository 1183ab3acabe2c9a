"""Ways to run a command on the cluster: over SSH, or on this machine.

One SSH connection is kept and shared by all threads of the process: login nodes limit
and ban accounts that open a connection per command. It is opened again when it broke,
with growing pauses, and never hammered after a refused login.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import paramiko

from slurm_worker.errors import HostUnreachable, ServiceError, SlurmWorkerError, UserError

_CONNECT_TIMEOUT_S = 15
_KEEPALIVE_S = 30
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command on the cluster said."""

    code: int
    stdout: str
    stderr: str


class Transport(Protocol):
    """Runs shell commands on the cluster; safe to share between threads."""

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

    Args:
        environment: variables beside this process's own.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = {**os.environ, **(environment or {})}

    def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
        """See `Transport.run`."""
        try:
            ended = subprocess.run(
                ["/bin/sh", "-c", command],
                input=stdin,
                capture_output=True,
                timeout=timeout,
                check=False,
                env=self._environment,
                cwd=Path.home(),
            )
        except subprocess.TimeoutExpired as error:
            raise ServiceError(f"cluster: no answer within {timeout:g} s to: {command}") from error
        return CommandResult(
            ended.returncode,
            ended.stdout.decode(errors="replace"),
            ended.stderr.decode(errors="replace"),
        )

    def close(self) -> None:
        """See `Transport.close`: there is nothing to close."""


class SshTransport:
    """A login node over one SSH connection.

    Args:
        connect: opens a connected client; called again when the connection broke.
    """

    def __init__(self, connect: Callable[[], paramiko.SSHClient]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._client: paramiko.SSHClient | None = None
        self._failures = 0
        self._not_before = 0.0
        self._last_error: SlurmWorkerError = ServiceError()

    def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
        """See `Transport.run`."""
        try:
            channel = self._open_channel(timeout)
            channel.settimeout(timeout)
            channel.exec_command(command)
            with channel.makefile("wb") as sending:
                sending.write(stdin)
            channel.shutdown_write()
            stdout = channel.makefile("rb").read()
            stderr = channel.makefile_stderr("rb").read()
            code = channel.recv_exit_status()
            channel.close()
        except (paramiko.SSHException, OSError, EOFError) as error:
            self._drop()
            raise ServiceError(
                f"cluster: the SSH connection broke ({type(error).__name__}: {error}); it is "
                "opened again with the next call"
            ) from error
        return CommandResult(code, stdout.decode(errors="replace"), stderr.decode(errors="replace"))

    def close(self) -> None:
        """See `Transport.close`."""
        self._drop()

    def _open_channel(self, timeout: float) -> paramiko.Channel:
        client = self._connected()
        transport = client.get_transport()
        if transport is not None and transport.is_active():
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                return transport.open_session(timeout=timeout)
        # Nothing was sent yet, so a connection that went stale may simply be replaced.
        self._drop()
        transport = self._connected().get_transport()
        if transport is None:
            raise paramiko.SSHException("the connection closed at once")
        return transport.open_session(timeout=timeout)

    def _connected(self) -> paramiko.SSHClient:
        with self._lock:
            if self._client is not None:
                return self._client
            if time.monotonic() < self._not_before:
                raise self._last_error
            try:
                self._client = self._connect()
            except Exception as error:
                self._failures += 1
                pause = min(_LONGEST_PAUSE_S, 2.0**self._failures) * random.uniform(0.5, 1.0)
                self._not_before = time.monotonic() + pause
                self._last_error = explain_failure(error)
                raise self._last_error from error
            self._failures = 0
            transport = self._client.get_transport()
            if transport is not None:
                transport.set_keepalive(_KEEPALIVE_S)
            return self._client

    def _drop(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


def explain_failure(error: Exception) -> SlurmWorkerError:
    """One line about why no connection came about, of the class that says who can mend it."""
    if isinstance(error, SlurmWorkerError):
        return error
    if isinstance(error, paramiko.AuthenticationException):
        return UserError(f"cluster: the login was refused ({error}); check user, key and agent")
    if isinstance(error, paramiko.BadHostKeyException):
        return UserError(
            f"cluster.known_hosts: the key of {error.hostname!r} is not the known one; if the node "
            "was set up anew, replace its line"
        )
    if isinstance(error, (socket.gaierror, TimeoutError, OSError)):
        return HostUnreachable(f"cluster.host: can't be reached ({error}); check host and port")
    return ServiceError(f"cluster: SSH: {error}")


def open_paramiko(
    host: str,
    port: int = 22,
    user: str | None = None,
    key_file: str | None = None,
    known_hosts: str | None = None,
) -> paramiko.SSHClient:
    """Connect to a login node; its host key must be a known one.

    Args:
        host: name or address.
        port: TCP port.
        user: the account; this process's user where None.
        key_file: a private key; the agent and the usual keys where None.
        known_hosts: a file beside the user's and the system's own.

    Raises:
        UserError: if the login is refused or the host's key is unknown or another.
        HostUnreachable: if there is no answer.
    """
    client = paramiko.SSHClient()
    client.load_system_host_keys()
    system = Path("/etc/ssh/ssh_known_hosts")
    if system.is_file():
        client.load_system_host_keys(str(system))
    if known_hosts:
        if not Path(known_hosts).expanduser().is_file():
            raise UserError(f"cluster.known_hosts: there is no file {known_hosts!r}")
        client.load_host_keys(str(Path(known_hosts).expanduser()))
    if key_file and not Path(key_file).expanduser().is_file():
        raise UserError(f"cluster.key_file: there is no file {key_file!r}")
    client.set_missing_host_key_policy(_RefuseUnknown(port))
    try:
        client.connect(
            host,
            port=port,
            username=user,
            key_filename=str(Path(key_file).expanduser()) if key_file else None,
            timeout=_CONNECT_TIMEOUT_S,
            banner_timeout=_CONNECT_TIMEOUT_S,
            auth_timeout=_CONNECT_TIMEOUT_S,
        )
    except Exception as error:
        client.close()
        explained = explain_failure(error)
        if isinstance(explained, HostUnreachable):
            explained = HostUnreachable(
                f"cluster.host: {host!r} port {port} can't be reached ({error}); check both, and "
                "the network"
            )
        raise explained from error
    return client


class _RefuseUnknown(paramiko.MissingHostKeyPolicy):
    def __init__(self, port: int) -> None:
        self._port = port

    def missing_host_key(
        self,
        client: paramiko.SSHClient,  # noqa: ARG002  the policy's signature
        hostname: str,
        key: paramiko.PKey,
    ) -> None:
        """Refuse, and say how the host becomes known."""
        host = hostname.strip("[]").split("]")[0]
        raise UserError(
            f"cluster.known_hosts: the key of {hostname!r} ({key.get_name()}) is not known; "
            f"compare and add it: ssh-keyscan -p {self._port} {host} >> known_hosts"
        )

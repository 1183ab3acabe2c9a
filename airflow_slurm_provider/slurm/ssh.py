"""The cluster over SSH.

All threads of a process share one connection, because login nodes limit and ban accounts that
open a connection per command. A broken connection is opened again, with growing pauses. After a
refused login, the next attempt waits 10 to 15 minutes.
"""

from __future__ import annotations

import logging
import random
import shlex
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import paramiko
from paramiko.hostkeys import InvalidHostKey
from paramiko.pkey import UnknownKeyType

from airflow_slurm_provider.slurm.transport import CLEAN, CommandResult, no_answer
from slurm_worker.errors import HostUnreachable, ServiceError, SlurmWorkerError, UserError

# It would print lines of its own on stderr where nobody has set up logging. Our errors say it.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

_KEEPALIVE_S = 30
_LONGEST_PAUSE_S = 60.0
_REFUSED_PAUSE_S = 600.0
#: sshd allows 10 sessions per connection by default.
_MOST_SESSIONS = 6
_SESSION_PAUSE_S = 0.05
_SESSIONS_REFUSED_S = 6.0
_PIECE = 1 << 16
#: Runs $1, and ends no sooner than its input. Data for a session that has ended makes sshd close
#: the whole connection, and paramiko can't hold back the data that it is sending. First prints
#: $2: any output before it is from the account's start-up files, which bash reads for these
#: commands too.
_OUTLIVE_INPUT = (
    f'{CLEAN} printf "%s\\n" "$2"; printf "%s\\n" "$2" >&2; '
    'sh -c "$1"; code=$?; cat > /dev/null; exit "$code"'
)
_SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")


class SshTransport:
    """A login node over one SSH connection.

    `connect` opens a connected client; it is called again when the connection broke.
    """

    def __init__(
        self,
        connect: Callable[[], paramiko.SSHClient],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._sessions = threading.BoundedSemaphore(_MOST_SESSIONS)
        self._current: paramiko.SSHClient | None = None
        #: The number of commands that use each connection
        self._users: Counter[paramiko.SSHClient] = Counter()
        self._host = "the login node"
        self._was_connected = False
        self._failures = 0
        self._not_before = 0.0
        self._refusal: SlurmWorkerError = ServiceError()
        self._start = f"slurmctl-{uuid.uuid4().hex}"

    def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
        """See `Transport.run`."""
        deadline = self._clock() + timeout
        with self._sessions:
            client, channel = self._open_channel(timeout)
            try:
                result = _execute(
                    channel, self.wrap(command), stdin, lambda: deadline - self._clock()
                )
                # The output of the command alone; all output if the login shell did not run it.
                both = (result.stdout, result.stderr)
                own = (text.rpartition(f"{self._start}\n")[2] for text in both)
                return CommandResult(result.code, *own)
            except TimeoutError as error:
                self._retire(client)
                message = no_answer(f"cluster: {self._host}", timeout, command)
                raise ServiceError(message) from error
            except (paramiko.SSHException, OSError, EOFError) as error:
                self._retire(client)
                raise ServiceError(
                    f"cluster: the SSH connection to {self._host} broke "
                    f"({type(error).__name__}: {error})",
                    "try again to open a new one",
                ) from error
            finally:
                channel.close()
                self._leave(client)

    def wrap(self, command: str) -> str:
        """The command line for the login shell: `command` in a clean environment."""
        return shlex.join(["sh", "-c", _OUTLIVE_INPUT, "sh", command, self._start])

    def close(self) -> None:
        """See `Transport.close`."""
        with self._lock:
            client, self._current = self._current, None
            used = client in self._users
        if client is not None and not used:
            client.close()

    def _open_channel(self, timeout: float) -> tuple[paramiko.SSHClient, paramiko.Channel]:
        """A channel on the shared connection, which is replaced once if it went stale."""
        replaced, refused, pause = False, 0.0, _SESSION_PAUSE_S
        while True:
            client = self._join()
            try:
                transport = client.get_transport()
                if transport is None or not transport.is_active():
                    raise paramiko.SSHException("the connection is closed")
                return client, transport.open_session(timeout=timeout)
            except paramiko.ChannelException as error:
                # The connection works, and other threads use it. sshd counts a session for a
                # moment after its end, so there may be one too many just now.
                self._leave(client)
                if refused > _SESSIONS_REFUSED_S:
                    raise ServiceError(
                        f"cluster: {self._host} refuses more sessions ({error.text})",
                        "try again later",
                    ) from error
                self._sleep(pause)
                refused, pause = refused + pause, 2 * pause
            except (paramiko.SSHException, OSError, EOFError) as error:
                self._retire(client)
                self._leave(client)
                if replaced:
                    raise ServiceError(
                        f"cluster: {self._host} opens no session ({error})", "try again"
                    ) from error
                replaced = True

    def _join(self) -> paramiko.SSHClient:
        with self._lock:
            if self._current is None:
                self._current = self._connected()
            self._users[self._current] += 1
            return self._current

    def _leave(self, client: paramiko.SSHClient) -> None:
        with self._lock:
            self._users[client] -= 1
            self._users = +self._users
            idle = client not in self._users and client is not self._current
        if idle:
            client.close()

    def _retire(self, client: paramiko.SSHClient) -> None:
        """Use it for nothing new; it is closed when its last user leaves."""
        with self._lock:
            if self._current is client:
                self._current = None

    def _connected(self) -> paramiko.SSHClient:
        if self._clock() < self._not_before:
            raise type(self._refusal)(str(self._refusal))
        try:
            client = self._connect()
        except Exception as error:
            explained = explain_failure(error)
            if isinstance(explained, HostUnreachable) and self._was_connected:
                # Its name and port were right before: the user has nothing to fix.
                explained = ServiceError(str(explained))
            self._failures += 1
            self._not_before = self._clock() + _pause(explained, self._failures)
            self._refusal = explained
            raise explained from error
        self._failures = 0
        self._was_connected = True
        transport = client.get_transport()
        if transport is not None:
            self._host = str(transport.getpeername()[0])
            transport.set_keepalive(_KEEPALIVE_S)
        return client


def _execute(
    channel: paramiko.Channel, command: str, stdin: bytes, left: Callable[[], float]
) -> CommandResult:
    """Run one command; TimeoutError once `left` seconds are not above 0."""

    def in_time() -> None:
        channel.settimeout(max(left(), 0.001))

    in_time()
    channel.exec_command(command)
    _send(channel, stdin, in_time)
    stdout = _receive(channel.recv, in_time)
    stderr = _receive(channel.recv_stderr, in_time)
    if not channel.status_event.wait(max(left(), 0.001)):
        raise TimeoutError("no exit status in time")
    if channel.exit_status < 0:
        raise EOFError("the command ended without an exit status")
    return CommandResult.of_bytes(channel.exit_status, stdout, stderr)


def _send(channel: paramiko.Channel, stdin: bytes, in_time: Callable[[], None]) -> None:
    # A command may end without reading all of it. Its own error says more.
    try:
        for start in range(0, len(stdin), _PIECE):
            in_time()
            channel.sendall(stdin[start : start + _PIECE])
        channel.shutdown_write()
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise


def _receive(receive: Callable[[int], bytes], in_time: Callable[[], None]) -> bytes:
    pieces: list[bytes] = []
    while True:
        in_time()
        piece = receive(_PIECE)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


def _pause(error: SlurmWorkerError, failures: int) -> float:
    """Seconds without another try to connect, with jitter."""
    if isinstance(error, UserError) and not isinstance(error, ServiceError):
        # Hosts ban addresses after a few refused logins. Only a person can fix this.
        return _REFUSED_PAUSE_S * random.uniform(1.0, 1.5)
    return min(_LONGEST_PAUSE_S, 2.0 ** min(failures, 10)) * random.uniform(0.5, 1.0)


def explain_failure(
    error: Exception, host: str = "", port: int = 22, user: str | None = None, key_file: str = ""
) -> SlurmWorkerError:
    """Why there is no connection, in one line; the class tells whether the user can fix it.

    `host` and the others are what the site gave; they are absent for a connection of Airflow's.
    """
    if isinstance(error, SlurmWorkerError):
        return error
    refused = isinstance(error, paramiko.AuthenticationException)
    if refused or "authentication methods" in str(error):
        login = f"{host!r} refused the login of {user or 'this account'}"
        fix = f"check user and key_file {key_file!r} (in ssh-agent, where it is encrypted)"
        return UserError(
            f"cluster: {login if host else 'the login was refused'} ({error})",
            fix if key_file else "check user, key and agent",
        )
    if isinstance(error, paramiko.BadHostKeyException):
        return UserError(
            f"cluster.known_hosts: the key of {error.hostname!r} is not the known one",
            "if the node was reinstalled, replace its line; if not, somebody may be listening in",
        )
    if isinstance(error, OSError):
        where = f"{host!r} port {port} " if host else ""
        fix = "check host, port and the network"
        return HostUnreachable(f"cluster.host: {where}can't be reached ({error})", fix)
    return ServiceError(f"cluster: SSH: {error}", "try again")


def open_paramiko(
    host: str,
    port: int = 22,
    user: str | None = None,
    key_file: str | None = None,
    known_hosts: str | None = None,
    timeout_s: float = 15,
) -> paramiko.SSHClient:
    """Connect to a login node; its host key must be a known one.

    Args:
        host: name or address.
        port: TCP port.
        user: the account; this process's user where None.
        key_file: a private key, the only one tried; the agent's if it is encrypted. The agent
            and the usual keys where None.
        known_hosts: a file in place of the user's own; the system's file always counts.
        timeout_s: longest time in seconds for each of connection, banner and authentication.

    Raises:
        UserError: if the login is refused, or the host's key is unknown or has changed.
        HostUnreachable: if there is no answer.
    """
    client = paramiko.SSHClient()
    _load_host_keys(client, known_hosts)
    key = _load_key(key_file) if key_file else None
    client.set_missing_host_key_policy(_RefuseUnknown(port))
    try:
        client.connect(
            host,
            port=port,
            username=user,
            pkey=key,
            # A named key is the only one tried: others would count as refused logins.
            allow_agent=key is None,
            look_for_keys=key_file is None,
            timeout=timeout_s,
            banner_timeout=timeout_s,
            auth_timeout=timeout_s,
        )
    except Exception as error:
        client.close()
        raise explain_failure(error, host, port, user, key_file or "") from error
    return client


def _load_host_keys(client: paramiko.SSHClient, known_hosts: str | None) -> None:
    try:
        if known_hosts:
            client.load_host_keys(_expand("known_hosts", known_hosts))
        else:
            client.load_system_host_keys()
        if _SYSTEM_KNOWN_HOSTS.is_file():
            client.load_system_host_keys(str(_SYSTEM_KNOWN_HOSTS))
    except (paramiko.SSHException, InvalidHostKey, OSError) as error:
        raise UserError(f"cluster.known_hosts: can't be read ({error})", "correct it") from error


def _load_key(name: str) -> paramiko.PKey | None:
    """The key; None where it is encrypted, so that only an agent can use it."""
    path = _expand("key_file", name)
    try:
        return paramiko.PKey.from_path(path)
    except (paramiko.PasswordRequiredException, TypeError):
        return None
    except (paramiko.SSHException, UnknownKeyType, ValueError, OSError) as error:
        raise UserError(
            f"cluster.key_file: {name!r} is not a private key ({error})", "name another file"
        ) from error


def _expand(field: str, name: str) -> str:
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"cluster.{field}: there is no file {name!r}", "correct the path")
    return str(path)


class _RefuseUnknown(paramiko.MissingHostKeyPolicy):
    def __init__(self, port: int) -> None:
        self._port = port

    def missing_host_key(
        self,
        client: paramiko.SSHClient,  # noqa: ARG002  the policy's signature
        hostname: str,
        key: paramiko.PKey,
    ) -> None:
        """Refuse, with the command that makes the host known."""
        host = hostname.removeprefix("[").split("]")[0]
        raise UserError(
            f"cluster.known_hosts: the key of {hostname!r} ({key.get_name()}) is not known",
            f"compare and add it: ssh-keyscan -p {self._port} {host} >> known_hosts",
        )

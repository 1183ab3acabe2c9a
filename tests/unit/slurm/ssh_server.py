"""A login node in this process: a real SSH server on a loopback port, for the client's faults."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from pathlib import Path

import paramiko

from airflow_slurm_provider.slurm.ssh import open_paramiko


class LoginNode:
    """Accepts one user's key and runs commands in sh.

    `refuse_sessions` and `silent` are switches; `logins` has each try to log in, `sessions`
    the commands that run now, `most_sessions` their highest number so far. `start_up` is what
    the account's start-up files do.
    """

    def __init__(self, folder: Path) -> None:
        self.host_key = paramiko.ECDSAKey.generate()
        self.user_key = paramiko.ECDSAKey.generate()
        self.key_file = folder / "key"
        self.user_key.write_private_key_file(str(self.key_file))
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.known_hosts = folder / "known_hosts"
        self.trust(self.host_key)
        self.logins: list[str] = []
        self.refuse_sessions = False
        self.silent = False
        self.start_up = b""
        self.sessions = self.most_sessions = 0
        self._lock = threading.Lock()
        self._transports: list[paramiko.Transport] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def trust(self, key: paramiko.PKey) -> None:
        line = f"[127.0.0.1]:{self.port} {key.get_name()} {key.get_base64()}\n"
        self.known_hosts.write_text(line)

    def count(self, change: int) -> None:
        with self._lock:
            self.sessions += change
            self.most_sessions = max(self.most_sessions, self.sessions)

    @property
    def connections(self) -> int:
        return len(self._transports)

    def cut(self) -> None:
        """Break all connections, as a firewall or a restart does."""
        for transport in self._transports:
            transport.close()

    def close(self) -> None:
        self._listening.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                transport = paramiko.Transport(connection)
                transport.add_server_key(self.host_key)
                self._transports.append(transport)
                with contextlib.suppress(paramiko.SSHException, EOFError):
                    transport.start_server(threading.Event(), _Session(self))


class _Session(paramiko.ServerInterface):
    def __init__(self, node: LoginNode) -> None:
        self._node = node

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self._node.logins.append(username)
        known = username == "lab" and key == self._node.user_key
        return paramiko.AUTH_SUCCESSFUL if known else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if self._node.refuse_sessions:
            return paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self._run, args=(channel, command), daemon=True).start()
        return True

    def _run(self, channel: paramiko.Channel, command: bytes) -> None:
        if self._node.silent:
            return
        # Input, or its end, follows our answer to the request: nothing may be sent before it.
        sent = channel.recv(1)
        if b"cat" in command:
            sent += channel.makefile("rb").read()
        self._node.count(+1)
        line = self._node.start_up + command
        ended = subprocess.run(["sh", "-c", line], input=sent, capture_output=True, check=False)
        self._node.count(-1)
        with contextlib.suppress(OSError):
            channel.sendall(ended.stdout)
            channel.sendall_stderr(ended.stderr)
            channel.send_exit_status(ended.returncode)
            channel.close()


def connect(node: LoginNode, user: str = "lab") -> paramiko.SSHClient:
    """A client that is logged in at the node."""
    return open_paramiko("127.0.0.1", node.port, user, str(node.key_file), str(node.known_hosts))


def closed_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port

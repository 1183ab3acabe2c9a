"""The SSH proxy cuts replies after the login, as many as it may, and passes on everything else."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.faults.ssh import KIND, Cuts, ssh_proxy
from tests.chaos.faults.tally import Tally

LOGIN, REPLY = b"l" * 4_000, b"r" * 1_000


@pytest.fixture
def port() -> Iterator[int]:
    """A server that sends a login, and then a reply to each request."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.sendall(LOGIN)
            while client.recv(100):
                client.sendall(REPLY)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


def converse(port: int) -> int:
    """Log in, and ask once; how many bytes of the reply came."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        assert client.recv(len(LOGIN), socket.MSG_WAITALL) == LOGIN
        client.sendall(b"?")
        came = 0
        while came < len(REPLY):
            came += len(client.recv(len(REPLY)))
        return came


def test_a_reply_is_cut_in_the_middle_and_counted_until_the_budget_is_spent(
    port: int, tmp_path: Path
) -> None:
    tally = Tally(tmp_path / "log")
    with ssh_proxy(port, Cuts(1, 1.0, 2, tally)) as proxied:
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                converse(proxied)
        assert converse(proxied) == len(REPLY)
    assert tally.counts == {KIND: 2}
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert all(line["after"] == len(LOGIN) and line["passed"] < line["of"] for line in lines)


def test_a_connection_without_cuts_is_passed_on_unchanged(port: int, tmp_path: Path) -> None:
    tally = Tally(tmp_path / "log")
    with ssh_proxy(port, Cuts(1, 0.0, 9, tally)) as proxied:
        assert [converse(proxied) for _ in range(3)] == [len(REPLY)] * 3
    assert not tally.counts

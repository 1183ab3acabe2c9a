"""A proxy before sshd that resets connections in the middle of a reply, a bounded number of them.

The bytes are encrypted. So a reply is anything that the server sends after the login. A part of it
is passed on, and both ends of the connection are reset.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.chaos.faults.tally import Tally

LOOPBACK = "127.0.0.1"
KIND = "ssh reply cut"
#: Bytes that the server sends until the login is done; measured, rounded up.
_LOGIN_BYTES = 2_000
_BUFFER = 1 << 16
_LINGER = struct.pack("ii", 1, 0)


class Cuts:
    """Decides which replies are cut; shared by all connections.

    Args:
        seed: of the choices. Which reply meets which choice depends on the commands.
        rate: share of the replies to cut.
        budget: cuts at most.
        tally: counts each cut.
    """

    def __init__(self, seed: int, rate: float, budget: int, tally: Tally) -> None:
        self._rng = random.Random(seed)
        self._rate = rate
        self._left = budget
        self._tally = tally
        self._lock = threading.Lock()

    def draw(self, before: int, length: int) -> int | None:
        """How many of `length` bytes are passed on, after `before` others; None for all."""
        with self._lock:
            if before < _LOGIN_BYTES or self._left <= 0 or self._rng.random() >= self._rate:
                return None
            self._left -= 1
            passed = self._rng.randrange(length)
            self._tally.add(KIND, after=before, passed=passed, of=length)
            return passed


@contextmanager
def ssh_proxy(port: int, cuts: Cuts) -> Iterator[int]:
    """Listen on loopback before the sshd at `port`; gives the proxy's own port."""
    server = socket.create_server((LOOPBACK, 0))
    server.settimeout(0.2)
    ended = threading.Event()
    thread = threading.Thread(target=_serve, args=(server, port, cuts, ended), daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        ended.set()
        thread.join()
        server.close()


def _serve(server: socket.socket, port: int, cuts: Cuts, ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            client, _ = server.accept()
        except TimeoutError:
            continue
        try:
            behind = socket.create_connection((LOOPBACK, port))
        except OSError:
            client.close()
            continue
        threading.Thread(target=_pass_on, args=(client, behind, cuts), daemon=True).start()


def _pass_on(client: socket.socket, behind: socket.socket, cuts: Cuts) -> None:
    """Serve one connection, in one thread: a reset would wait for another one that reads."""
    client.setblocking(True)
    others, before = {client: behind, behind: client}, 0
    with client, behind, contextlib.suppress(OSError):
        while True:
            for ready in select.select([*others], [], [])[0]:
                data = ready.recv(_BUFFER)
                passed = cuts.draw(before, len(data)) if data and ready is behind else None
                others[ready].sendall(data[:passed])
                if passed is not None:
                    for each in others:
                        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
                    return
                if not data:
                    return
                before += len(data) if ready is behind else 0

"""What several end-to-end tests need and no fixture gives."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable


def until(happens: Callable[[], object], what: str, seconds: float = 120.0) -> None:
    """Look at it, again and again; it must happen in time."""
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, f"{what}: did not come about in {seconds:g} s"
        time.sleep(0.5)


def free_port() -> int:
    """A port of loopback at which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port

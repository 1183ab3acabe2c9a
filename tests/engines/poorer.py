"""A proxy on loopback that takes away what not every table and store has.

A request is forwarded byte for byte as it was signed, and the reply is what becomes poorer. So it
also stands before a store that checks signatures; only `Lack.HEED` changes a request.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit

_LOOPBACK = "127.0.0.1"
_TIMEOUT_S = 60.0
#: Headers of one hop; botocore signs none of them.
_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}
_CONDITIONS = {"if-match", "if-none-match"}
_CHECKSUMS = ("x-amz-checksum-", "x-amz-sdk-checksum-", "x-amz-trailer")
#: Of so many writes to a store with conflicts, one is refused.
_CONFLICT_EVERY = 5


class Lack(str, Enum):
    """What a service does not have, or what it does instead."""

    DATE = "Date"  #: replies have no time
    OLD_ITEM = "old items"  #: a refused condition does not return the row
    CHECKSUMS = "checksums"  #: replies have none
    CONDITIONS = "conditions"  #: a conditional PUT is answered with 501
    KNOWN_CHECKSUMS = "the SDK's checksums"  #: a request that has one is refused
    HEED = "If-None-Match"  #: a conditional PUT is carried out as if it had no condition
    CALM = "conflict-free writes"  #: some writes are answered with 409
    CREDENTIALS = "valid credentials"  #: every request is refused, as they have expired
    TIME = "the right time"  #: every request is refused, as the client's clock is wrong


#: How S3 and DynamoDB refuse every request: code and message of each.
_REFUSED = {
    Lack.CREDENTIALS: (
        ("ExpiredToken", "The provided token has expired."),
        ("ExpiredTokenException", "The security token included in the request is expired"),
    ),
    Lack.TIME: (
        ("RequestTimeTooSkewed", "The difference between the request time and ours is too large."),
        (
            "InvalidSignatureException",
            "Signature expired: 20261130T100000Z is now earlier than now",
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def without(self, *prefixes: str) -> _Reply:
        kept = tuple(each for each in self.headers if not each[0].lower().startswith(prefixes))
        return replace(self, headers=kept)


@contextmanager
def poorer(target: str, lacks: Collection[Lack]) -> Iterator[str]:
    """Serve a proxy before the service at the URL `target`; gives the proxy's own URL.

    The proxy looks at `lacks` for each request, so that it may change.
    """
    where = urlsplit(target)
    if where.hostname != _LOOPBACK or where.port is None:
        raise ValueError(f"{target!r} is not on loopback; the proxy sends nowhere else")

    class Bound(_Handler):
        port = where.port or 0
        writes = itertools.count(1)

    Bound.lacks = lacks
    server = _Server((_LOOPBACK, 0), Bound)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield f"http://{_LOOPBACK}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that closes the connection."""


class _Handler(BaseHTTPRequestHandler):
    port: ClassVar[int]
    lacks: ClassVar[Collection[Lack]]
    writes: ClassVar[Iterator[int]]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        length = self.headers.get("Content-Length")
        body = None if length is None else self.rfile.read(int(length))
        self._answer(self._refusal() or self._poorer(self._forward(body)))

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _refusal(self) -> _Reply | None:
        """What the service answers itself, without carrying out the request."""
        for lack, (of_s3, of_dynamodb) in _REFUSED.items():
            if lack in self.lacks:
                to_table = "X-Amz-Target" in self.headers
                return _dynamodb_refusal(*of_dynamodb) if to_table else _s3_refusal(400, *of_s3)
        names = {name.lower() for name in self.headers}
        if Lack.KNOWN_CHECKSUMS in self.lacks and any(map(_is_checksum, names)):
            return _s3_refusal(400, "InvalidArgument", "Unsupported header x-amz-checksum")
        if self.command != "PUT":
            return None
        if Lack.CONDITIONS in self.lacks and names & _CONDITIONS:
            return _s3_refusal(501, "NotImplemented", "A header implies what is not implemented")
        if Lack.CALM in self.lacks and next(self.writes) % _CONFLICT_EVERY == 0:
            return _s3_refusal(409, "OperationAborted", "A conflicting operation is in progress")
        return None

    def _forward(self, body: bytes | None) -> _Reply:
        with closing(http.client.HTTPConnection(_LOOPBACK, self.port, timeout=_TIMEOUT_S)) as to:
            to.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                unheeded = Lack.HEED in self.lacks and name.lower() == "if-none-match"
                if name.lower() not in _HOP and not unheeded:
                    to.putheader(name, value)
            to.endheaders(body)
            found = to.getresponse()
            return _Reply(found.status, tuple(found.getheaders()), found.read())

    def _poorer(self, reply: _Reply) -> _Reply:
        if Lack.DATE in self.lacks:
            reply = reply.without("date")
        if Lack.CHECKSUMS in self.lacks:
            reply = reply.without("x-amz-checksum-", "x-amz-crc32")
        if Lack.OLD_ITEM in self.lacks and b"ConditionalCheckFailed" in reply.body:
            document = json.loads(reply.body)
            document.pop("Item", None)
            # The checksum is that of the whole body.
            reply = replace(reply.without("x-amz-crc32"), body=json.dumps(document).encode())
        return reply

    def _answer(self, reply: _Reply) -> None:
        length = str(len(reply.body))
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in (*_HOP, "content-length"):
                self.send_header(name, value)
        if reply.status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
        """Say nothing."""


def _is_checksum(name: str) -> bool:
    return name.startswith(_CHECKSUMS)


def _dynamodb_refusal(code: str, message: str) -> _Reply:
    document = {"__type": f"com.amazon.coral.service#{code}", "message": message}
    kind = ("Content-Type", "application/x-amz-json-1.0")
    return _Reply(400, (kind,), json.dumps(document).encode())


def _s3_refusal(status: int, code: str, message: str) -> _Reply:
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return _Reply(status, (("Content-Type", "application/xml"),), text.encode())

"""An S3 store that doesn't know ``If-None-Match``: a proxy before one that does."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit

_LOOPBACK = "127.0.0.1"
_DROPPED = {"connection", "expect", "keep-alive", "transfer-encoding", "if-none-match"}


@contextmanager
def ignorant_store(target: str) -> Iterator[str]:
    """Serve it before the store at the URL `target`, one that checks no signatures; its URL."""

    class Bound(_Handler):
        port = urlsplit(target).port or 0

    server = ThreadingHTTPServer((_LOOPBACK, 0), Bound)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield f"http://{_LOOPBACK}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    port: ClassVar[int]
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        length = self.headers.get("Content-Length")
        body = None if length is None else self.rfile.read(int(length))
        with closing(http.client.HTTPConnection(_LOOPBACK, self.port, timeout=30)) as store:
            store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _DROPPED:
                    store.putheader(name, value)
            store.endheaders(body)
            reply = store.getresponse()
            data = reply.read()
        self.send_response_only(reply.status, reply.reason)
        for name, value in reply.getheaders():
            if name.lower() not in (*_DROPPED, "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", reply.getheader("Content-Length") or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
        """Say nothing."""

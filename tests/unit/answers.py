"""A server on loopback that answers as a function says, and refusals of S3 and DynamoDB."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import boto3

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The reply to one request."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


#: The answer to a request.
Answering = Callable[[Request], Answer]


@dataclass(frozen=True, slots=True)
class Server:
    """The server's address, and the requests that it has had."""

    url: str
    requests: list[Request]


@contextmanager
def serving(answering: Answering) -> Iterator[Server]:
    """Serve answers until the end of the block."""
    requests: list[Request] = []

    class Bound(_Handler):
        pass

    Bound.answering = staticmethod(answering)
    Bound.requests = requests
    server = ThreadingHTTPServer((_LOOPBACK, 0), Bound)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Server(f"http://{_LOOPBACK}:{server.server_address[1]}", requests)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@cache
def session() -> boto3.Session:
    """A session with credentials that open nothing; one for all, as it reads the SDK's data."""
    return boto3.Session("an id", "a secret", region_name="us-east-1")


def s3_refusal(
    status: int, code: str, message: str = "no", headers: Mapping[str, str] | None = None
) -> Answer:
    """A refusal in S3's form; without a code it has no text, as some stores answer."""
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>" if code else ""
    return Answer(status, text.encode(), {"Content-Type": "application/xml", **(headers or {})})


def dynamo_refusal(
    status: int, code: str, message: str = "no", headers: Mapping[str, str] | None = None
) -> Answer:
    """A refusal in DynamoDB's form."""
    document = {"__type": f"com.amazon.coral.service#{code}", "message": message}
    kind = {"Content-Type": "application/x-amz-json-1.0"}
    return Answer(status, json.dumps(document).encode(), {**kind, **(headers or {})})


def page_of_a_proxy(status: int, title: str, headers: Mapping[str, str] | None = None) -> Answer:
    """What a web server before the store answers: lines of HTML."""
    text = f"<html>\n<head><title>{title}</title></head>\n<body>{title}</body>\n</html>\n"
    return Answer(status, text.encode(), {"Content-Type": "text/html", **(headers or {})})


class _Handler(BaseHTTPRequestHandler):
    answering: ClassVar[Answering]
    requests: ClassVar[list[Request]]
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self.rfile.read(length))
        self.requests.append(request)
        answer = type(self).answering(request)
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's name
        """Say nothing."""

"""The fault proxy passes on what was sent, and spoils what it says that it spoils."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.chaos.faults import proxy
from tests.chaos.faults.proxy import Fault, Faults, Upstream, listening_proxy


@dataclass
class Service:
    """What stands behind the proxy: answers every request, and remembers it."""

    url: str = ""
    seen: list[tuple[str, str, bytes]] = field(default_factory=list)


@pytest.fixture
def service() -> Iterator[Service]:
    behind = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            behind.seen.append((self.path, self.headers["Host"], body))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "12345")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    behind.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield behind
    server.shutdown()
    server.server_close()


def only(
    fault: Fault, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rate: float = 1.0
) -> Faults:
    monkeypatch.setattr(proxy, "_WEIGHTS", {fault: 1})
    monkeypatch.setattr(proxy, "_DELAY_S", (0.01, 0.02))
    return Faults(1, rate, 1, tmp_path / "faults.jsonl")


def connect(url: str) -> http.client.HTTPConnection:
    where = urlsplit(url)
    return http.client.HTTPConnection(str(where.hostname), where.port, timeout=10)


def put(client: http.client.HTTPConnection) -> http.client.HTTPResponse:
    client.request("PUT", "/k", b"body")
    return client.getresponse()


def test_a_connection_is_kept_and_the_host_that_was_signed_is_passed_on(
    service: Service, tmp_path: Path
) -> None:
    with listening_proxy(Upstream.S3, service.url, Faults(1, 0, 0, tmp_path / "log")) as url:
        client = connect(url)
        for body in (b"one", b""):
            client.request("PUT", "/a?b=c%20d", body, {"Host": "signed.example:1"})
            assert client.getresponse().read() == b"ok"
        client.request("HEAD", "/a")
        reply = client.getresponse()
        assert (reply.read(), reply.headers["Content-Length"]) == (b"", "12345")
        client.close()
    assert service.seen == [
        ("/a?b=c%20d", "signed.example:1", b"one"),
        ("/a?b=c%20d", "signed.example:1", b""),
    ]


def test_a_chunked_upload_that_waits_for_its_go_ahead_arrives_whole(
    service: Service, tmp_path: Path
) -> None:
    with listening_proxy(Upstream.S3, service.url, Faults(1, 0, 0, tmp_path / "log")) as url:
        where = urlsplit(url)
        with socket.create_connection((where.hostname, where.port or 0), timeout=10) as client:
            client.sendall(
                b"PUT /k HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            reader = client.makefile("rb")
            assert b" 100 " in reader.readline()
            reader.readline()
            client.sendall(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n")
            assert b" 200 " in reader.readline()
            reader.close()
    assert service.seen == [("/k", "h", b"abcde")]


@pytest.mark.parametrize(
    ("fault", "applied"),
    [(Fault.DROP_REPLY, True), (Fault.DROP_REQUEST, False), (Fault.REFUSE, False)],
)
def test_a_lost_connection_has_applied_the_request_only_where_the_reply_was_dropped(
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    applied: bool,
) -> None:
    faults = only(fault, monkeypatch, tmp_path)
    with listening_proxy(Upstream.S3, service.url, faults) as url:
        client = connect(url)
        with pytest.raises((http.client.HTTPException, OSError)):
            put(client)
        assert len(service.seen) == applied
        client = connect(url)
        assert put(client).read() == b"ok"
        client.close()
    line = json.loads((tmp_path / "faults.jsonl").read_text())
    assert (line["kind"], line["method"], line["what"]) == (fault.value, "PUT", "/k")
    assert faults.counts == {f"s3 {fault.value}": 1}


@pytest.mark.parametrize(
    ("upstream", "fault", "status", "words"),
    [
        (Upstream.S3, Fault.THROTTLE, 503, "<Code>SlowDown</Code>"),
        (Upstream.S3, Fault.ERROR_500, 500, "<Code>InternalError</Code>"),
        (Upstream.DYNAMODB, Fault.THROTTLE, 400, "Exception"),
        (Upstream.DYNAMODB, Fault.ERROR_500, 500, "InternalServerError"),
        (Upstream.S3, Fault.DELAY, 200, "ok"),
    ],
)
def test_errors_speak_as_the_service_does(
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    upstream: Upstream,
    fault: Fault,
    status: int,
    words: str,
) -> None:
    with listening_proxy(upstream, service.url, only(fault, monkeypatch, tmp_path)) as url:
        client = connect(url)
        reply = put(client)
        assert (reply.status, words in reply.read().decode()) == (status, True)
        client.close()


def test_the_proxy_sends_nowhere_but_to_loopback(tmp_path: Path) -> None:
    faults = Faults(1, 0, 0, tmp_path / "log")
    with (
        pytest.raises(ValueError, match="not on loopback"),
        listening_proxy(Upstream.S3, "http://192.0.2.1:80", faults),
    ):
        pass

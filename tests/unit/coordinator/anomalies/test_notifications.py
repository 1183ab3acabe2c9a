"""Alerts reach SNS and webhooks; a failed delivery is logged, and nothing else fails."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from airflow_slurm_provider.coordinator.anomalies.alert import Alert, AnomalyKind
from airflow_slurm_provider.coordinator.anomalies.notifications import deliver
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.site import parse_site
from slurm_worker.errors import UserError
from tests.unit.coordinator.fakes import SITE, services

ALERT = Alert(
    "j", AnomalyKind.BAD_NODE, "node7", 1, "on node node7 …", "leave it out", {"share": 0.5}, 9
)


class Receiver(ThreadingHTTPServer):
    """A webhook that keeps what it is sent."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.status = 200
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.bodies.append(json.loads(body))
                self.send_response(receiver.status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook/s3cret"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def with_alerts(**alerts: str) -> Services:
    edges = services()
    site = parse_site({**SITE, "alerts": alerts}, "site")
    return replace(edges, site=site, sns=lambda region: boto3.client("sns", region_name=region))


def said(edges: Services) -> list[str]:
    lines: list[str] = []
    deliver(edges, ALERT, lines.append)
    return lines


def test_a_site_without_alerts_sends_nothing() -> None:
    assert said(services()) == []


def test_a_webhook_gets_the_alert_and_a_text(receiver: Receiver) -> None:
    assert said(with_alerts(webhook_url=receiver.url)) == []
    (body,) = receiver.bodies
    assert body == {"text": ALERT.line(), **ALERT.to_dict()}


def test_the_address_can_be_in_the_environment_or_in_a_file(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ALERTS_URL", receiver.url)
    assert said(with_alerts(webhook_url_env="ALERTS_URL")) == []
    file = tmp_path / "url"
    file.write_text(f"{receiver.url}\n")
    assert said(with_alerts(webhook_url_file=str(file))) == []
    assert len(receiver.bodies) == 2


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_webhook_error_is_logged_without_its_address(receiver: Receiver, status: int) -> None:
    receiver.status = status
    (line,) = said(with_alerts(webhook_url=receiver.url))
    assert str(status) in line
    assert "s3cret" not in line
    assert len(receiver.bodies) == 1, "a redirect is not followed"


def test_a_missing_webhook_is_logged(tmp_path: Path) -> None:
    with socket.socket() as taken:
        # Bound, so that nobody else listens there, and deaf.
        taken.bind(("127.0.0.1", 0))
        (line,) = said(with_alerts(webhook_url=f"http://127.0.0.1:{taken.getsockname()[1]}/"))
    assert "refused" in line
    (line,) = said(with_alerts(webhook_url_env="NO_SUCH_VARIABLE"))
    assert "alerts.webhook_url_env: NO_SUCH_VARIABLE" in line
    (line,) = said(with_alerts(webhook_url_file=str(tmp_path / "none")))
    assert "No such file" in line


@pytest.fixture
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.mark.usefixtures("_credentials")
def test_a_topic_gets_the_alert_in_its_own_region() -> None:
    with mock_aws():
        sns = boto3.client("sns", region_name="eu-west-1")
        topic = sns.create_topic(Name="alerts")["TopicArn"]
        sqs = boto3.client("sqs", region_name="eu-west-1")
        queue = sqs.create_queue(QueueName="q")["QueueUrl"]
        arn = "arn:aws:sqs:eu-west-1:123456789012:q"
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
        assert said(with_alerts(sns_topic_arn=topic)) == []
        (message,) = sqs.receive_message(QueueUrl=queue)["Messages"]
    envelope = json.loads(message["Body"])
    assert envelope["Subject"] == "j: bad_node (node7)"
    assert json.loads(envelope["Message"])["numbers"] == {"share": 0.5}
    assert envelope["MessageAttributes"]["kind"]["Value"] == "bad_node"


@pytest.mark.usefixtures("_credentials")
def test_a_missing_topic_is_logged_and_the_webhook_is_tried(receiver: Receiver) -> None:
    with mock_aws():
        topic = "arn:aws:sns:eu-west-1:123456789012:none"
        (line,) = said(with_alerts(sns_topic_arn=topic, webhook_url=receiver.url))
    assert "bad_node/node7/1 was not sent to SNS" in line
    assert len(receiver.bodies) == 1


@pytest.mark.parametrize(
    ("alerts", "message"),
    [
        ({"webhook_url": "http://chat.example/s3cret"}, "chat.example unencrypted; use https"),
        ({"webhook_url": "ftp://s3cret"}, "is not an address"),
        ({"webhook_url": "s3cret"}, "is not an address"),
        ({"webhook_url": "https://a/b", "webhook_url_env": "X"}, "give only one of them"),
        ({"sns_topic_arn": "alerts"}, "is not an SNS topic"),
        ({"topic": "alerts"}, "alerts.topic"),
    ],
)
def test_a_wrong_alerts_section_is_refused_without_showing_the_secret(
    alerts: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError) as error:
        parse_site({**SITE, "alerts": alerts}, "site")
    assert message in str(error.value)
    assert "s3cret" not in str(error.value)

"""Alerts sent to people: by an SNS topic, by a webhook.

A failed delivery is logged, and delays nothing for more than a few seconds. The alert is in the
audit log in any case. One request per alert and channel.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from airflow_slurm_provider.coordinator.anomalies.alert import Alert
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.site import AlertsSite, check_webhook
from slurm_worker.backends.errors import UNANSWERED
from slurm_worker.errors import UserError

_TIMEOUT_S = 5.0
#: What SNS allows as the subject of an e-mail.
_MOST_SUBJECT = 100


def deliver(services: Services, alert: Alert, log: Callable[[str], None]) -> None:
    """Send an alert by every channel of the site; log failures."""
    alerts = services.site.alerts
    if alerts.sns_topic_arn:
        try:
            _publish(services, alerts.sns_topic_arn, alert)
        except (*UNANSWERED, ClientError) as error:
            log(f"alert {alert.id} was not sent to SNS: {error}")
    try:
        url = _webhook(alerts)
        if url is not None:
            _post(url, alert)
    # The address itself may be a secret; no error text holds it.
    except (UserError, OSError, http.client.HTTPException) as error:
        log(f"alert {alert.id} was not sent to the webhook: {error}")


def document(alert: Alert) -> dict[str, Any]:
    """The message: a text for people and chat services, and the alert's own fields."""
    return {"text": alert.line(), **alert.to_dict()}


def _publish(services: Services, topic: str, alert: Alert) -> None:
    assert services.sns is not None, "open_services gives one"
    subject = f"{alert.job_id}: {alert.kind.value} ({alert.subject})"
    services.sns(topic.split(":")[3]).publish(
        TopicArn=topic,
        Subject=subject[:_MOST_SUBJECT],
        Message=json.dumps(document(alert), indent=1),
        MessageAttributes={
            name: {"DataType": "String", "StringValue": value}
            for name, value in (("kind", alert.kind.value), ("job_id", alert.job_id))
        },
    )


def _webhook(alerts: AlertsSite) -> str | None:
    """The address, from where the site keeps it; raises a UserError if it is not there."""
    if alerts.webhook_url_env:
        found = os.environ.get(alerts.webhook_url_env, "")
        return check_webhook(found.strip(), f"alerts.webhook_url_env: {alerts.webhook_url_env}")
    if alerts.webhook_url_file:
        file = Path(alerts.webhook_url_file).expanduser()
        return check_webhook(file.read_text().strip(), f"alerts.webhook_url_file: {file}")
    return alerts.webhook_url


def _post(url: str, alert: Alert) -> None:
    request = urllib.request.Request(  # noqa: S310  # check_webhook lets http and https pass
        url,
        data=json.dumps(document(alert)).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "airflow-slurm-provider"},
        method="POST",
    )
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT_S) as reply:
        reply.read()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """No redirects: an alert goes only to the site's address."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        """Refuse: the reply is an error then."""

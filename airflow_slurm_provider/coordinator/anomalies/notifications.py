"""Alerts sent to where people are: an SNS topic, a webhook.

What can't be delivered is said, and holds nobody up: each try has a few seconds. The alert
stays in the audit trail in any case. One request per alert and channel.
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

from botocore.exceptions import BotoCoreError, ClientError

from airflow_slurm_provider.coordinator.anomalies.alert import Alert
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.site import AlertsSite, check_webhook
from slurm_worker.errors import UserError

_TIMEOUT_S = 5.0
#: What SNS allows as the subject of an e-mail.
_MOST_SUBJECT = 100


def deliver(services: Services, alert: Alert, say: Callable[[str], None]) -> None:
    """Send an alert by all that the site names; say what fails."""
    alerts = services.site.alerts
    if alerts.sns_topic_arn:
        try:
            _publish(services, alerts.sns_topic_arn, alert)
        except (BotoCoreError, ClientError) as error:
            say(f"alert {alert.id} is not on SNS: {error}")
    try:
        url = _webhook(alerts)
        if url is not None:
            _post(url, alert)
    # The address itself may be a secret; none of these says it.
    except (UserError, OSError, http.client.HTTPException) as error:
        say(f"alert {alert.id} is not at the webhook: {error}")


def document(alert: Alert) -> dict[str, Any]:
    """What is sent: a text for people and chat services, and the alert's own fields."""
    return {"text": alert.line(), **alert.to_dict()}


def _publish(services: Services, topic: str, alert: Alert) -> None:
    assert services.sns is not None, "whoever opens services of a site with alerts gives one"
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
    """The address, wherever it is kept.

    Raises:
        UserError: if it is not where the site says.
    """
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
    """An alert goes where the site says, and nowhere else."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        """Refuse: the reply is an error then."""

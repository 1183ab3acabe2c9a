"""Credentials of the nodes: STS, the document on the cluster, and the SDK that reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from slurm_worker.errors import ExpiredCredentials, NoCredentials

#: How long the simulated credentials are valid, and how much faster than the simulated time the
#: clock of a process runs that renews them. So an hour of credentials passes in minutes.
LIFETIME_S, FASTER = 240.0, 20.0
ROLE = "arn:aws:iam::123456789012:role/nodes"
_DOCUMENT = "/credentials.json"


class Sts:
    """The client of the service that makes credentials.

    Args:
        now: the right time of day.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now

    def assume_role(self, **_request: object) -> dict[str, Any]:
        """Make credentials."""
        expires = datetime.fromtimestamp(self._now() + LIFETIME_S, timezone.utc)
        keys = {"AccessKeyId": "AKIA", "SecretAccessKey": "secret", "SessionToken": "token"}
        return {"Credentials": {**keys, "Expiration": expires}}


class Signer:
    """The SDK of one worker process: reads the document when what it has read has expired.

    Args:
        files: of the cluster's account.
        here: the time of day of the process.
        now: the right time of day.
        refused: called with each request that can't be made.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        here: Callable[[], float],
        now: Callable[[], float],
        refused: Callable[[], None],
    ) -> None:
        self._files = files
        self._here = here
        self._now = now
        self._refused = refused
        self._expires = 0.0

    def check(self) -> None:
        """Sign a request.

        Raises:
            NoCredentials: if there is no document.
            ExpiredCredentials: if what it holds has expired, here or for the service.
        """
        if self._expires <= self._here():
            self._expires = self._read()
        if self._expires <= self._here() or self._expires <= self._now():
            self._refused()
            raise ExpiredCredentials("the AWS credentials have expired", "renew them")

    def _read(self) -> float:
        for path, data in self._files.items():
            if path.endswith(_DOCUMENT):
                return datetime.fromisoformat(json.loads(data)["Expiration"]).timestamp()
        raise NoCredentials("there are no AWS credentials")

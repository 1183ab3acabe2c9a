"""What this machine may do with the table and the bucket, tried on a row and an object of its own.

`slurmctl doctor` uses it where it runs, and ``slurm-worker check`` on a node. Requests:
five to the table, four to the store, one for the clock; nothing is left behind.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime

from slurm_worker.backends.checksums import CHECKSUMS_FIX
from slurm_worker.errors import (
    AccessDenied,
    ServiceError,
    UserError,
    WrongSetting,
    describe,
    problem_and_fix,
)
from slurm_worker.protocol.keys import JobId, job_pk
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.ports import ObjectStore, Rows
from slurm_worker.protocol.statements import jobs as job_statements

#: The job of the probes' row and object; no real job has this id.
PROBE_JOB = JobId("doctor.probe")
_LONGEST_ERROR = 300
_WRITTEN = b"tried"
#: Requests for the time, where the server is slow.
_TRIES = 3


@dataclass(frozen=True, slots=True)
class AccessProbe:
    """One action, tried."""

    action: str  #: by its IAM name
    error: str = ""  #: the service's; empty where the action is allowed
    fix: str = ""  #: the error's own, and often empty


def probe_table(rows: Rows, unique: str) -> list[AccessProbe]:
    """Try each action that workers and coordinator need on the table.

    Stops at the first error that is not a missing permission: the next actions would fail too.
    """
    pk, sk = job_pk(PROBE_JOB), f"TRIAL#{unique}"
    tried = job_statements.set_config("tried")
    return _run(
        ("dynamodb:PutItem", lambda: rows.put_new({"pk": pk, "sk": sk, "config": ""})),
        ("dynamodb:GetItem", lambda: rows.get(pk, sk)),
        ("dynamodb:Query", lambda: list(rows.query(pk, limit=1))),
        ("dynamodb:UpdateItem", lambda: rows.update(pk, sk, tried)),
        ("dynamodb:DeleteItem", lambda: rows.delete(pk, sk)),
    )


def probe_bucket(objects: ObjectStore, prefix: str, unique: str) -> list[AccessProbe]:
    """Try each action that workers and coordinator need in the bucket; see `probe_table`."""
    key = JobPaths(prefix, PROBE_JOB).probe(unique)
    return _run(
        # First, as some stores create a bucket of any name that is written to.
        ("s3:ListBucket", lambda: list(objects.list(key))),
        ("s3:PutObject", lambda: objects.put(key, _WRITTEN)),
        ("s3:GetObject", lambda: _read_back(objects, key)),
        ("s3:DeleteObject", lambda: objects.delete(key)),
    )


def clock_ahead(url: str, timeout_s: float = 10.0) -> float | None:
    """Seconds by which this machine's clock is certainly ahead of a server's; negative if behind.

    A server gives its time in whole seconds, so 0 means no more than that the clocks may
    agree. None if the server gives no time, as some other than AWS's. The request is not signed: a
    clock that is far off has signed requests refused.

    Raises:
        ServiceError: if the server does not answer.
    """
    try:
        sent, headers, received = _headers_of(url, timeout_s)
    except (OSError, ValueError) as error:
        raise ServiceError(
            f"{url} can't be reached ({describe(error)})",
            "check the endpoint, the region and the network",
        ) from error
    try:
        second = parsedate_to_datetime(headers["Date"]).timestamp()
    except (TypeError, ValueError):
        return None
    # It answered at some time within that second, and between our two: clocks may agree.
    least, most = sent - (second + 1), received - second
    return round(max(least, 0.0) + min(most, 0.0), 1)


def _read_back(objects: ObjectStore, key: str) -> None:
    """Read the object; some stores keep the SDK's checksum as a part of its bytes.

    Raises:
        WrongSetting: if it has other bytes than were written; it is deleted then.
    """
    found = objects.get(key)
    if found not in (None, _WRITTEN):
        objects.delete(key)
        raise WrongSetting(f"{_WRITTEN!r} was written, and {found[:80]!r} was read", CHECKSUMS_FIX)


def _headers_of(url: str, timeout_s: float) -> tuple[float, Message, float]:
    """A reply's headers, whatever its status, between the times of request and reply."""
    for left in reversed(range(_TRIES)):
        sent = time.time()
        try:
            with urllib.request.urlopen(url, timeout=timeout_s) as reply:  # noqa: S310  the site's
                return sent, reply.headers, time.time()
        except urllib.error.HTTPError as error:
            return sent, error.headers, time.time()
        except OSError as error:
            timed_out = isinstance(getattr(error, "reason", error), TimeoutError)
            if not timed_out or not left:
                raise
    raise AssertionError("unreachable: the last try returns or raises")


def _run(*steps: tuple[str, Callable[[], object]]) -> list[AccessProbe]:
    probes = []
    for action, step in steps:
        try:
            step()
            probes.append(AccessProbe(action))
        except (ServiceError, UserError) as error:
            probes.append(AccessProbe(action, *problem_and_fix(error, _LONGEST_ERROR)))
            if not isinstance(error, AccessDenied):
                break
    return probes

"""The job as the node sees it: frozen dataclasses, read from the resolved JSON.

The strict models of the YAML that users write live in the provider; they resolve to
this. The JSON is content-addressed on S3, so a running worker never sees it change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from slurm_worker.errors import ClassRule, ErrorClass, UserError
from slurm_worker.protocol.keys import JobId

#: Heartbeat intervals that a lease must outlast: two, each up to a tenth late, and the requests.
#: So one lost heartbeat loses no lease.
_BEATS = 2.5
#: Clocks differ by less than this (`backends/clock.py`); messages propose no less.
_LEAST_MARGIN_S = 1.0
#: A heartbeat is a write, and takes some ten milliseconds.
_LEAST_HEARTBEAT_S = 0.5
#: Getting a token takes some ten milliseconds.
_LEAST_SEND_WINDOW_S = 0.1


@dataclass(frozen=True, slots=True)
class HandlerConfig:
    """Where the user's function is."""

    entry: str  #: ``module:function``
    #: Digest of the zip of the handler's code on S3; empty where the module is already importable
    #: on the node.
    code_sha256: str = ""
    #: The user's own settings, passed to the handler as ``context.params``.
    params: dict[str, Any] = field(default_factory=dict)
    requirements: str = ""  #: a requirements file within the shipped code, installed on the node
    plugin: str = ""  #: an entry point to use instead of `entry`


@dataclass(frozen=True, slots=True)
class LimitConfig:
    """One shared rate limit, from which every call of the handler takes a token."""

    name: str  #: the limit's name; jobs of the same scope and name share it
    rate: float  #: tokens per second
    burst: int = 1  #: tokens that may be sent at once after an idle time
    scope: str = "shared"  #: the limit's namespace in the table
    send_window_s: float = 1.0  #: a token older than this is dropped (L in the bound)
    quota_per_day: int | None = None  #: tokens per UTC day; None for no limit


@dataclass(frozen=True, slots=True)
class LeaseConfig:
    """Times of a task's lease, in seconds."""

    ttl_s: float = 120.0  #: a lease not renewed for this long may be stolen
    heartbeat_s: float = 30.0  #: renewed this often
    margin_s: float = 15.0  #: added to the ttl before a lease may be stolen, for clocks that differ
    max_lost: int = 3  #: a task whose lease was lost this often is quarantined
    max_tries: int = 3  #: a task that failed this often is not tried again
    stall_s: float = 3600.0  #: a worker in which no item ends within this time gives its lease up


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """How a worker runs the items of a task."""

    concurrency: int = 1  #: calls of the handler at the same time: threads, or coroutines
    tries: int = 3  #: calls per item inside the worker, for transient errors
    backoff_s: float = 0.5  #: base of the full-jitter backoff between them
    max_backoff_s: float = 30.0  #: its ceiling
    #: An item that takes longer fails with class timeout; 0 for no limit.
    item_timeout_s: float = 0.0
    checkpoint_s: float = 60.0  #: shortest time between two checkpoints; 0 for none
    log_level: str = "INFO"  #: of the worker's and the handler's log lines


@dataclass(frozen=True, slots=True)
class JobConfig:
    """Everything a worker needs to know of a job; no secrets."""

    job_id: JobId
    table: str
    bucket: str
    prefix: str  #: the site's key prefix inside the bucket
    shards: int
    handler: HandlerConfig
    max_workers: int = 1  #: workers that may run at the same time, for the limits' horizon
    #: Whether the store decides between two markers; otherwise the table does.
    conditional_put: bool = True
    part_format: str = "jsonl.gz"  #: one of `parts.PART_FORMATS`
    #: The declared schema, for parts that need one.
    columns: dict[str, str] = field(default_factory=dict)
    limits: tuple[LimitConfig, ...] = ()
    lease: LeaseConfig = field(default_factory=LeaseConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    rules: tuple[ClassRule, ...] = ()  #: the job's own rules for the classes of errors

    def to_json(self, spec: dict[str, Any]) -> bytes:
        """The resolved configuration: what workers need, and the job as the user wrote it.

        The same content gives the same bytes.
        """
        document = {"v": 1, "worker": asdict(self), "spec": spec}
        return json.dumps(document, sort_keys=True, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> JobConfig:
        """Read the worker's half of what `to_json` wrote."""
        raw = json.loads(data)["worker"]
        return cls(
            **{
                **raw,
                "handler": HandlerConfig(**raw["handler"]),
                "limits": tuple(LimitConfig(**limit) for limit in raw["limits"]),
                "lease": LeaseConfig(**raw["lease"]),
                "worker": WorkerConfig(**raw["worker"]),
                "rules": tuple(
                    ClassRule(**{**rule, "error_class": ErrorClass(rule["error_class"])})
                    for rule in raw["rules"]
                ),
            }
        )


def check_times(lease: LeaseConfig, worker: WorkerConfig, limits: Sequence[LimitConfig]) -> None:
    """Refuse times with which some items, or all, could not be processed.

    Raises:
        UserError: naming the field, its value, and values that work.
    """
    _check_lease(lease)
    _check_worker(worker, lease)
    for limit in limits:
        if limit.send_window_s < _LEAST_SEND_WINDOW_S:
            raise UserError(
                f"limits.{limit.name}.send_window: {_s(limit.send_window_s)} is shorter than "
                f"a request for a token to the table; write {_s(_LEAST_SEND_WINDOW_S)} or more"
            )


def check_lifetime(seconds: float, worker: WorkerConfig, limits: Sequence[LimitConfig]) -> None:
    """Refuse what can't be done in the time that a worker has: from its start until its signal.

    `seconds` is ``slurm.time`` less ``slurm.grace``.

    Raises:
        UserError: naming the field, its value, and what to change.
    """
    if worker.item_timeout_s >= seconds:
        raise UserError(
            f"worker.item_timeout: {_s(worker.item_timeout_s)} is not less than the {_s(seconds)} "
            "that a worker has (slurm.time less slurm.grace); write worker.item_timeout: "
            f"{_down(0.9 * seconds)} or less, or raise slurm.time"
        )
    for limit in limits:
        if 1 / limit.rate >= seconds:
            raise UserError(
                f"limits.{limit.name}.rate: one call in {_s(1 / limit.rate)} is not more than one "
                f"in the {_s(seconds)} that a worker has (slurm.time less slurm.grace); raise "
                "slurm.time"
            )


def _check_lease(lease: LeaseConfig) -> None:
    ttl_s, beat_s, margin_s = lease.ttl_s, lease.heartbeat_s, lease.margin_s
    if beat_s < _LEAST_HEARTBEAT_S:
        raise UserError(
            f"lease.heartbeat: {_s(beat_s)} is too often, as each is a write to the table; write "
            f"{_s(_LEAST_HEARTBEAT_S)} or more"
        )
    least_s = margin_s + _BEATS * beat_s
    # The sum of decimal numbers may be slightly too large.
    if ttl_s >= least_s - 1e-9 * ttl_s:
        return
    longest_s = max(0.0, ttl_s - margin_s) / _BEATS
    others = ""
    if longest_s >= _LEAST_HEARTBEAT_S:
        others += f", or lease.heartbeat: {_down(longest_s)}"
    if (widest_s := ttl_s - _BEATS * beat_s) >= _LEAST_MARGIN_S:
        others += f", or lease.margin: {_down(widest_s)}"
    raise UserError(
        f"lease.ttl: {_s(ttl_s)} is too short for lease.heartbeat {_s(beat_s)} and lease.margin "
        f"{_s(margin_s)}: it must be at least margin + {_BEATS:g} x heartbeat; write "
        f"lease.ttl: {_up(least_s)}{others}"
    )


def _check_worker(worker: WorkerConfig, lease: LeaseConfig) -> None:
    if worker.item_timeout_s >= lease.stall_s:
        raise UserError(
            f"worker.item_timeout: {_s(worker.item_timeout_s)} is not less than lease.stall "
            f"({_s(lease.stall_s)}), after which the whole task is given up; write "
            f"lease.stall: {_s(2 * worker.item_timeout_s)}"
        )
    if worker.backoff_s > worker.max_backoff_s:
        raise UserError(
            f"worker.backoff: {_s(worker.backoff_s)} is over worker.max_backoff "
            f"({_s(worker.max_backoff_s)}); write worker.max_backoff: {_s(worker.backoff_s)} "
            "or more"
        )


def _down(seconds: float) -> str:
    """Rounded down to a tenth, so that the proposed value works."""
    return _s(math.floor(seconds * 10 + 1e-6) / 10)


def _up(seconds: float) -> str:
    return _s(math.ceil(seconds * 10 - 1e-6) / 10)


def _s(seconds: float) -> str:
    """As the YAML accepts it."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"

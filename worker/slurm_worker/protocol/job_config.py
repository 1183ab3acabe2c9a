"""The job as the node sees it: frozen dataclasses, read from the resolved JSON.

The strict models of the YAML that users write live in the provider; they resolve to
this. The JSON is content-addressed on S3, so a running worker never sees it change.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from slurm_worker.errors import ClassRule, ErrorClass
from slurm_worker.protocol.keys import JobId


@dataclass(frozen=True, slots=True)
class HandlerConfig:
    """Where the user's function is.

    Args:
        entry: ``module:function``.
        code_sha256: digest of the zip of the handler's code on S3; empty where the
            module is already importable on the node.
        params: the user's own settings, handed to the handler as ``context.params``.
        requirements: a requirements file within the shipped code, installed on the node.
        plugin: an entry point to use instead of `entry`.
    """

    entry: str
    code_sha256: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    requirements: str = ""
    plugin: str = ""


@dataclass(frozen=True, slots=True)
class LimitConfig:
    """One shared rate limit, from which every call of the handler takes a token.

    Args:
        name: the limit's name; jobs of the same scope and name share it.
        rate: tokens per second.
        burst: tokens that may be sent at once after an idle time.
        scope: the limit's namespace in the table.
        send_window_s: a token older than this is thrown away (L in the bound).
        quota_per_day: tokens per UTC day; None for no limit.
    """

    name: str
    rate: float
    burst: int = 1
    scope: str = "shared"
    send_window_s: float = 1.0
    quota_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class LeaseConfig:
    """Times of a task's lease, in seconds.

    Args:
        ttl_s: a lease not renewed for this long may be stolen.
        heartbeat_s: renewed this often.
        margin_s: added to the ttl before anybody steals, for clocks that differ.
        max_lost: a task whose lease was lost this often is quarantined.
        max_tries: a task that failed this often is failed for good.
        stall_s: a worker none of whose items ends within this time gives its lease up.
    """

    ttl_s: float = 120.0
    heartbeat_s: float = 30.0
    margin_s: float = 15.0
    max_lost: int = 3
    max_tries: int = 3
    stall_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """How a worker runs the items of a task.

    Args:
        concurrency: calls of the handler at the same time: threads, or coroutines.
        tries: calls per item inside the worker, for errors that may pass.
        backoff_s: base of the full-jitter backoff between them.
        max_backoff_s: its ceiling.
        item_timeout_s: an item that takes longer fails with class timeout; 0 for no limit.
        checkpoint_s: least time between two checkpoints; 0 for none.
        log_level: of the worker's and the handler's log lines.
    """

    concurrency: int = 1
    tries: int = 3
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0
    item_timeout_s: float = 0.0
    checkpoint_s: float = 60.0
    log_level: str = "INFO"


@dataclass(frozen=True, slots=True)
class JobConfig:
    """Everything a worker needs to know of a job; no secrets.

    Args:
        job_id: the job.
        table: the DynamoDB table's name.
        bucket: the S3 bucket.
        prefix: the site's key prefix inside it.
        shards: task shards of the job.
        max_workers: workers that may run at the same time, for the limits' horizon.
        conditional_put: whether the store decides between two markers; where it can't, the
            table does.
        part_format: one of `parts.PART_FORMATS`.
        columns: the declared schema, for parts that need one.
        rules: the job's own on which errors have which class.
    """

    job_id: JobId
    table: str
    bucket: str
    prefix: str
    shards: int
    handler: HandlerConfig
    max_workers: int = 1
    conditional_put: bool = True
    part_format: str = "jsonl.gz"
    columns: dict[str, str] = field(default_factory=dict)
    limits: tuple[LimitConfig, ...] = ()
    lease: LeaseConfig = field(default_factory=LeaseConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    rules: tuple[ClassRule, ...] = ()

    def to_json(self, spec: dict[str, Any]) -> bytes:
        """The resolved configuration: what workers need, and the user's own words (`spec`).

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

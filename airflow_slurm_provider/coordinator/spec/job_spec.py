"""The job's YAML: strict models, and the configuration that workers get from them.

All faces take the same YAML, or a mapping: ``slurmctl submit``, and the operators' ``config``.
An unknown key or a wrong type is refused with one line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from airflow_slurm_provider.coordinator.spec.anomaly_thresholds import AnomaliesSection
from airflow_slurm_provider.coordinator.spec.field_types import (
    Bytes,
    PerSecond,
    Seconds,
    Strict,
    resolve,
)
from airflow_slurm_provider.coordinator.spec.input_section import InputSection
from airflow_slurm_provider.coordinator.spec.retry_policy import RetryRule
from airflow_slurm_provider.coordinator.spec.site import Site
from airflow_slurm_provider.coordinator.spec.validation import read_yaml, validate
from airflow_slurm_provider.slurm.options import SlurmOptions
from airflow_slurm_provider.slurm.states import ElementState
from airflow_slurm_provider.units import parse_slurm_time
from slurm_worker.errors import ClassRule, ErrorClass, UserError
from slurm_worker.protocol.job_config import (
    HandlerConfig,
    JobConfig,
    LeaseConfig,
    LimitConfig,
    WorkerConfig,
    check_lifetime,
    check_times,
)
from slurm_worker.protocol.keys import NAME_PATTERN, JobId, check_job_id
from slurm_worker.results.parts import PARQUET, check_names

_ENTRY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class HandlerSection(Strict):
    """The user's function; `code` is a folder beside the YAML that is uploaded for the nodes."""

    entry: str = ""
    """`module:function`."""
    plugin: str = ""
    """Instead of `entry`: an entry point of the group `slurm_worker.handlers`."""
    code: str | None = None
    """The folder to upload, relative to the YAML; at most 50 MB (1 MB is 2^20 bytes)."""
    requirements: str = ""
    """A requirements file within `code`, installed by pip on the node."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Passed to the handler as `context.params`."""

    @field_validator("entry")
    @classmethod
    def _is_entry(cls, value: str) -> str:
        if not _ENTRY.fullmatch(value):
            raise ValueError(f"{value!r} is not the name of a function; write module:function")
        return value

    @field_validator("params")
    @classmethod
    def _keep_apart(cls, value: dict[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(TypeError):  # a key that is not JSON, such as a date
            check_names(value)
        return value

    @model_validator(mode="after")
    def _is_one_function(self) -> HandlerSection:
        if bool(self.entry) == bool(self.plugin):
            raise ValueError("must name one function; give either entry or plugin")
        if self.requirements and not self.code:
            raise ValueError("has requirements but no code; give the folder that holds the file")
        return self


class LimitSection(Strict):
    """A rate limit shared by all workers of all jobs that name it."""

    rate: PerSecond
    """Tokens a second, over all workers of all jobs that name the limit."""
    burst: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Tokens that may be used at once after an idle time."""
    scope: str = "shared"
    """The limit's namespace in the table."""
    send_window: Seconds = 1.0
    """How old a token may be when it is used, at least 0.1 s; older tokens are discarded."""
    quota_per_day: Annotated[int, Field(ge=1, le=10**12)] | None = None
    """Tokens per UTC day, if the vendor also has a daily quota."""


class WorkerSection(Strict):
    """How each worker runs its items."""

    concurrency: Annotated[int, Field(ge=1, le=1000)] = 1
    """Calls at the same time: threads, or coroutines of an `async def` handler."""
    processes: Annotated[int, Field(ge=1, le=256)] = 1
    """Worker processes per element of the array, for work that needs CPUs."""
    tries: Annotated[int, Field(ge=1, le=100)] = 3
    """Calls per item inside the worker, for temporary errors."""
    backoff: Seconds = 0.5
    """Base of the full-jitter backoff between them."""
    max_backoff: Seconds = 30.0
    """Its ceiling."""
    item_timeout: Seconds | None = None
    """An item that takes longer fails with class `timeout`; not of `@batch` handlers, whose calls
    are bounded by `lease.stall`."""
    checkpoint: Seconds | None = 60.0
    """Shortest time between two checkpoints of a task; `null` for none."""
    part_format: Literal["jsonl.gz", "sqlite", "parquet"] = "jsonl.gz"
    """How results are stored; `parquet` needs `aggregate.schema` and pyarrow."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Of the worker's and the handler's log lines."""


class LeaseSection(Strict):
    """Times of a task's lease, and how often a lease may be lost."""

    ttl: Seconds = 120.0
    """A lease that is not renewed for this long may be stolen; at least `margin` and 2.5 times
    `heartbeat`."""
    heartbeat: Seconds = 30.0
    """A lease is renewed this often; at least 0.5 s."""
    margin: Seconds = 15.0
    """Added to `ttl` before a lease is stolen, for clocks that differ."""
    stall: Seconds = 3600.0
    """A worker gives its lease up if none of its items ends within this time; more than
    `worker.item_timeout`."""
    max_lost: Annotated[int, Field(ge=1, le=1000)] = 3
    """A task that lost its lease this often is bisected; a half of a task is quarantined."""


class ClassifySection(Strict):
    """One rule on which errors have which class; all given conditions must hold."""

    error_class: ErrorClass = Field(alias="class")
    """The class of the errors that match."""
    exception: str = ""
    """Qualified name of the exception's class, or of one of its bases."""
    message: str = ""
    """A regular expression that is searched in the exception's text."""
    status: Annotated[int, Field(ge=400, le=599)] | None = None
    """The HTTP status that the exception carries."""
    slurm: ElementState | None = None
    """Slurm's state of a worker that died."""

    @field_validator("message")
    @classmethod
    def _is_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _says_what_it_matches(self) -> ClassifySection:
        of_exceptions = bool(self.exception or self.message or self.status)
        if of_exceptions == bool(self.slurm):
            raise ValueError("must have either exception, message or status, or else slurm")
        return self


class AggregateSection(Strict):
    """The published dataset."""

    schema_: dict[str, str] | None = Field(default=None, alias="schema")
    """Column: type; if not given, inferred in a pass over all rows."""
    rename: dict[str, str] = Field(default_factory=dict)
    """Column: new name."""
    partition_by: tuple[str, ...] = ()
    """Columns that become folders."""
    sort_by: tuple[str, ...] = ()
    """Columns that the rows are sorted by; without them, rows have the input's order."""
    rows_per_file: Annotated[int, Field(ge=1)] = 5_000_000
    """About how many rows a file has, at most."""
    file_size: Bytes = 512 << 20
    """About how large a file is, at most; `1MB` is 2^20 bytes."""
    row_group_size: Annotated[int, Field(ge=1)] = 131_072
    """Rows of a row group."""
    memory: Bytes = 1 << 30
    """About the most memory that merging may use; `1MB` is 2^20 bytes."""
    where: Literal["local", "slurm"] = "local"
    """Merge in the coordinator's process, or on the cluster's nodes."""
    workers: Annotated[int, Field(ge=1, le=10_000)] = 8
    """How many workers merge on the nodes, with `where: slurm`."""
    slurm: dict[str, Any] = Field(default_factory=dict)
    """Slurm options of these workers, over those of the job."""
    requirements: tuple[str, ...] | None = None
    """What pip installs for them; by default the coordinator's version of pyarrow."""


class JobSpec(Strict):
    """The job's YAML."""

    job_id: str
    """The job's name: 1 to 63 of `a-z 0-9 . _ -`, a letter or digit first."""
    input: InputSection
    """What the items are."""
    handler: HandlerSection
    """The function that is called for each item."""
    bundle: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Items per task: aim at 2 to 10 minutes of work; by default chosen from the input's size."""
    workers: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Elements of the array; fewer if there are fewer tasks, or if rate limits allow no more."""
    limits: dict[str, LimitSection] = Field(default_factory=dict)
    """Rate limits by name; each call of the handler takes a token of each."""
    worker: WorkerSection = WorkerSection()
    """How each worker runs its items."""
    lease: LeaseSection = LeaseSection()
    """Times of the tasks' leases."""
    slurm: dict[str, Any] = Field(default_factory=dict)
    """Options of `sbatch`, in snake case, and a few of this project."""
    retry: dict[ErrorClass, RetryRule] = Field(default_factory=dict)
    """By error class: `never`, a number of rounds, or a rule."""
    classify: list[ClassifySection] = Field(default_factory=list)
    """Which errors have which class; the first rule that matches applies."""
    aggregate: AggregateSection = AggregateSection()
    """The published dataset."""
    anomalies: AnomaliesSection = AnomaliesSection()
    """When something is an anomaly of this job."""

    @field_validator("limits")
    @classmethod
    def _are_names(cls, value: dict[str, LimitSection]) -> dict[str, LimitSection]:
        for name, limit in value.items():
            for text in (name, limit.scope):
                if not NAME_PATTERN.fullmatch(text):
                    raise ValueError(f"{text!r} is not a valid name; use letters, digits . _ -")
        return value

    @property
    def id(self) -> JobId:
        """The job's id, checked when the config was loaded."""
        return JobId(self.job_id)

    @property
    def slurm_options(self) -> SlurmOptions:
        """The array's options, checked when the config was loaded."""
        return SlurmOptions.from_mapping(self.slurm)

    def check_schema(self) -> None:
        """Refuse a declared schema with a wrong type, and Parquet parts without a schema."""
        declared = self.aggregate.schema_
        if declared is not None:
            # pyarrow takes a third of a second to import, and most jobs declare no schema.
            from slurm_worker.aggregate.columns.types import parse_schema

            parse_schema(declared)
        elif self.worker.part_format == PARQUET:
            raise UserError(
                "worker.part_format: 'parquet' needs columns; declare them in aggregate.schema"
            )

    @property
    def max_workers(self) -> int:
        """Worker processes that may run at the same time."""
        return self.workers * self.worker.processes

    @property
    def slurm_classes(self) -> dict[ElementState, ErrorClass]:
        """The classes that the job's rules give to Slurm's states."""
        return {rule.slurm: rule.error_class for rule in self.classify if rule.slurm}

    def identity(self) -> str:
        """Digest of the settings that can't change between two submits of one job id."""
        settings = [self.job_id, *self.input.identity()]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]

    def resolve_lease(self) -> LeaseConfig:
        """Times of the tasks' leases."""
        return resolve(self.lease, LeaseConfig)

    def resolve_worker(self) -> WorkerConfig:
        """How each worker runs its items; 0 means no item timeout, and no checkpoints."""
        timeout, checkpoint = self.worker.item_timeout or 0.0, self.worker.checkpoint or 0.0
        return resolve(self.worker, WorkerConfig, item_timeout_s=timeout, checkpoint_s=checkpoint)

    def resolve_limits(self) -> tuple[LimitConfig, ...]:
        """The rate limits."""
        return tuple(resolve(limit, LimitConfig, name=name) for name, limit in self.limits.items())

    def resolve(
        self, site: Site, shards: int, code_sha256: str, *, conditional_put: bool = True
    ) -> JobConfig:
        """What the workers need to know."""
        return JobConfig(
            job_id=self.id,
            table=site.storage.table,
            bucket=site.bucket,
            prefix=site.prefix,
            shards=shards,
            max_workers=self.max_workers,
            conditional_put=conditional_put,
            part_format=self.worker.part_format,
            columns=self.aggregate.schema_ or {},
            handler=resolve(self.handler, HandlerConfig, code_sha256=code_sha256),
            limits=self.resolve_limits(),
            lease=self.resolve_lease(),
            worker=self.resolve_worker(),
            rules=tuple(
                ClassRule(rule.error_class, rule.exception, rule.message, rule.status or 0)
                for rule in self.classify
                if rule.slurm is None
            ),
        )


@dataclass(frozen=True, slots=True)
class Config:
    """A job's spec, and the folder that its relative paths start from; `source` is for messages."""

    spec: JobSpec
    folder: Path
    source: str


def load_config(source: str | Path | Mapping[str, Any], *, job_id: str | None = None) -> Config:
    """Read a job's YAML file or mapping; `job_id` replaces the one in it.

    Relative paths in it start from the file's folder, or from the working directory.

    Raises:
        UserError: naming the field, the value and what to do.
    """
    raw = read_source(source)
    return parse_config({**raw, "job_id": job_id} if job_id else raw, source)


def read_source(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The content of a job's YAML file or mapping, unchecked; see `read_yaml`."""
    if isinstance(source, Mapping):
        return dict(source)
    raw = read_yaml(Path(source), "config", "name the job's YAML file")
    if isinstance(raw, dict):
        return raw
    raise UserError(f"{source}: must be a mapping of settings; see docs/guides/configuration.md")


def parse_config(raw: Mapping[str, Any], source: str | Path | Mapping[str, Any]) -> Config:
    """Check what `read_source` has read from `source`; see `load_config`."""
    if isinstance(source, Mapping):
        name, folder = "config", Path.cwd()
    else:
        name, folder = str(source), Path(source).resolve().parent
    spec = validate(JobSpec, raw, f"{name}: ")
    check_job_id(spec.job_id, f"{name}: job_id")
    try:
        _check_times(spec)
        spec.check_schema()
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    spec = spec.model_copy(update={"input": spec.input.below(folder)})
    return Config(spec, folder, name)


def spec_of(document: bytes) -> JobSpec:
    """The user's part of a resolved configuration on S3."""
    return JobSpec.model_validate(json.loads(document)["spec"])


def _check_times(spec: JobSpec) -> None:
    """Refuse times that can't work together; see `slurm_worker.protocol.job_config`."""
    worker, limits, options = spec.resolve_worker(), spec.resolve_limits(), spec.slurm_options
    check_times(spec.resolve_lease(), worker, limits)
    if options.time is not None:
        check_lifetime(parse_slurm_time(options.time) - options.grace, worker, limits)

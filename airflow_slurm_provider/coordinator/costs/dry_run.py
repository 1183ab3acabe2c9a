"""A dry run: what submitting a job would plan, start and cost. Writes nothing anywhere.

The input is read from beginning to end, as `submit` reads it, so that what is wrong with it
is found here too. Requests: those that read an input on S3. The only question to the cluster is
for its largest array; the dry run also works without an answer.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import asdict, dataclass
from typing import Any

from airflow_slurm_provider.coordinator import spec_store
from airflow_slurm_provider.coordinator.costs import prices
from airflow_slurm_provider.coordinator.costs.actual import expected_work
from airflow_slurm_provider.coordinator.inputs.reader import Input
from airflow_slurm_provider.coordinator.inputs.unique_keys import KeyCheck
from airflow_slurm_provider.coordinator.planning import bundle_size
from airflow_slurm_provider.coordinator.planning.planner import SEGMENT_ITEMS
from airflow_slurm_provider.coordinator.services import Log, Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config, JobSpec
from airflow_slurm_provider.coordinator.submission import upload
from airflow_slurm_provider.coordinator.submission.workers import useful_workers
from airflow_slurm_provider.slurm.script import render_script
from airflow_slurm_provider.slurm.submission import guarded
from airflow_slurm_provider.units import format_count, parse_slurm_time
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol.job_rows import array_sizes
from slurm_worker.protocol.keys import shard_count

_DAY_S = 86_400
#: Where a submission's own token will stand.
_DRAWN_LATER = "TOKEN"
_FIRST = "000-1"


@dataclass(frozen=True, slots=True)
class Estimate:
    """The result of a dry run."""

    job_id: str
    items: int
    bundle: int
    tasks: int
    segments: int
    shards: int
    workers_asked: int
    workers: int  #: as `submit` would start: no more than have something to do
    arrays: tuple[int, ...]  #: elements of each array
    max_array_size: int | None  #: None where the cluster could not be reached
    shortest_s: float | None  #: the shortest time that the rate limits allow, at a token an item
    work_s: float | None  #: the time that the workers take, where the time of an item was given
    planning: prices.Bill  #: requests of `submit`
    working: prices.Bill  #: requests of the workers, where no task is tried twice
    merging: prices.Bill  #: requests of `aggregate`
    #: Writes of a worker per hour of work, which `working` holds as far as the time of the work is
    #: known
    heartbeats: int
    resources: tuple[str, ...]  #: the ``slurm`` options of each worker
    cpu_hours_most: float | None  #: what Slurm may give in all, by the time limit; None without one
    script: str  #: of the first array; the token in its name is drawn by `submit`
    notes: tuple[str, ...]  #: remarks on the plan

    @property
    def total(self) -> prices.Bill:
        """All requests."""
        return self.planning + self.working + self.merging

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        found = asdict(self)
        for bill in ("planning", "working", "merging"):
            del found[bill]
            found[f"dollars_{bill}"] = round(getattr(self, bill).dollars, 8)
        for name in ("arrays", "resources", "notes"):
            found[name] = list(found[name])
        found["heartbeats_per_worker_hour"] = found.pop("heartbeats")
        return {
            **found,
            "requests": self.total.requests,
            "dollars": round(self.total.dollars, 8),
            "prices": {"region": prices.REGION, "of": prices.PRICES_OF},
        }


def estimate(
    services: Services, config: Config, *, item_s: float | None = None, log: Log = lambda _: None
) -> Estimate:
    """What `submit` of the same config would do, at `item_s` seconds an item if that is known.

    Raises:
        UserError: a mistake in the config or the input, as `submit` would report it.
        ServiceError: if an input on S3 can't be reached.
    """
    found, notes = Input(config.spec.input, services.bucket, services.engine), list[str]()
    spec = bundle_size.with_bundle(config.spec, services.bucket, log, found)
    bundle = bundle_size.bundle_of(spec)
    code_sha256, _ = upload.pack_code(config)
    items = _count(found, log)
    tasks = math.ceil(items / bundle)
    workers = useful_workers(spec, spec.workers, tasks, notes.append)
    size = _max_array_size(services, notes)
    arrays = tuple(array_sizes(workers, size or workers))
    shortest_s = _shortest_s(spec, items)
    processes = workers * spec.worker.processes
    work_s = _work_s(spec, items, processes, item_s, shortest_s)
    return Estimate(
        job_id=spec.job_id,
        items=items,
        bundle=bundle,
        tasks=tasks,
        segments=math.ceil(tasks / max(1, SEGMENT_ITEMS // bundle)),
        shards=shard_count(spec.max_workers),
        workers_asked=spec.workers,
        workers=workers,
        arrays=arrays,
        max_array_size=size,
        shortest_s=shortest_s,
        work_s=work_s,
        planning=prices.planning_bill(tasks, items),
        working=expected_work(
            spec, tasks, items, processes, busy_s=(work_s or shortest_s or 0.0) * processes
        ),
        merging=prices.merging_bill(tasks),
        heartbeats=round(3600 / spec.lease.heartbeat),
        resources=tuple(spec.slurm_options.arguments()),
        cpu_hours_most=_cpu_hours_most(spec, workers),
        script=_script(services, spec, code_sha256, arrays[0]),
        notes=tuple(notes),
    )


def _count(found: Input, log: Log) -> int:
    count = 0
    with KeyCheck() as keys:
        for _ in keys.watch(found.items()):
            count += 1
            if count % SEGMENT_ITEMS == 0:
                log(f"read {format_count(count, 'item')}")
        keys.check(found.places, "generate_key" if found.spec.generate_key else "key")
    return count


def _max_array_size(services: Services, notes: list[str]) -> int | None:
    try:
        return services.slurm.max_array_size()
    except (ServiceError, UserError) as error:
        notes.append(f"MaxArraySize is unknown, so one array is assumed: {error}")
        return None


def _shortest_s(spec: JobSpec, items: int) -> float | None:
    """What the slowest limit allows, at a token an item."""
    times = [0.0]
    for limit in spec.limits.values():
        by_rate = max(0, items - limit.burst) / limit.rate
        quota = limit.quota_per_day
        # The last day's tokens may be used at the rate.
        by_day = (math.ceil(items / quota) - 1) * _DAY_S if quota else 0
        times.append(max(by_rate, float(by_day)))
    return round(max(times), 3) if spec.limits else None


def _work_s(
    spec: JobSpec, items: int, processes: int, item_s: float | None, shortest_s: float | None
) -> float | None:
    if item_s is None:
        return None
    at_once = processes * spec.worker.concurrency
    return round(max(items * item_s / at_once, shortest_s or 0.0), 3)


def _cpu_hours_most(spec: JobSpec, workers: int) -> float | None:
    options = spec.slurm_options
    if options.time is None:
        return None
    return round(workers * (options.cpus_per_task or 1) * parse_slurm_time(options.time) / 3600, 3)


def _script(services: Services, spec: JobSpec, code_sha256: str, workers: int) -> str:
    """The first array's script, as `submit` renders it where the store is a conditional one."""
    resolved = spec.resolve(services.site, shard_count(spec.max_workers), code_sha256)
    digest, _ = spec_store.config_document(spec, resolved)
    name, _ = upload.built_worker()
    remote = f"{services.site.cluster.remote_dir}/{name}"
    script = render_script(
        spec.slurm_options,
        name=f"{spec.job_id}.{_FIRST}.{_DRAWN_LATER}",
        workers=workers,
        command=[
            *shlex.split(upload.worker_command(services, remote)),
            *upload.worker_arguments(services, spec, digest, _FIRST),
        ],
        environment=services.site.aws.environment(),
    )
    return guarded(script)

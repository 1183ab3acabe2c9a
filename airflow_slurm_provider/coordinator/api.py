"""The verbs that every face calls: submit, progress, poll, retry, aggregate.

Those that steer a job under way (pause, resume, cancel) are in `submission/control.py`.

Each is safe to call again at any point, from several processes at once. All results
are plain data with a `to_dict`.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from airflow_slurm_provider.coordinator import spec_store
from airflow_slurm_provider.coordinator.inputs.reader import version_of
from airflow_slurm_provider.coordinator.planning import bundle_size
from airflow_slurm_provider.coordinator.planning import retry_round as retrying
from airflow_slurm_provider.coordinator.planning.initial_round import (
    check_identity,
    finish_first_round,
    has_plan,
    plan_job,
    standing_bundle,
    tell_other_input,
)
from airflow_slurm_provider.coordinator.planning.planner import Planner
from airflow_slurm_provider.coordinator.planning.retry_round import RetryPlan
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config, JobSpec
from airflow_slurm_provider.coordinator.spec.retry_policy import Rules, parse_rules
from airflow_slurm_provider.coordinator.status import progress as progress_of
from airflow_slurm_provider.coordinator.status.dead_workers import (
    WorkerFailure,
    attribute,
    find_losses,
)
from airflow_slurm_provider.coordinator.status.failures import cured_by_class
from airflow_slurm_provider.coordinator.status.progress import JobStatus, Progress, check_running
from airflow_slurm_provider.coordinator.submission import upload
from airflow_slurm_provider.coordinator.submission.workers import (
    Workers,
    audit_workers,
    ensure_workers,
)
from airflow_slurm_provider.slurm.client import SubmissionCancelledError
from slurm_worker.errors import ErrorClass, UserError
from slurm_worker.protocol.generations import open_round
from slurm_worker.protocol.job_table import JobRow, JobTable, RoundRow, SubmissionRow
from slurm_worker.protocol.keys import JobId, RoundState, SubmitState
from slurm_worker.protocol.ports import Value

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Submitted:
    """What `submit` came to."""

    job_id: str
    round: int
    tasks: int
    items: int
    workers: int
    slurm_job_ids: tuple[str, ...]
    slurm_job_name: str
    reattached: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {**asdict(self), "slurm_job_ids": list(self.slurm_job_ids)}


@dataclass(frozen=True, slots=True)
class RetryResult:
    """What `retry` came to.

    Args:
        round: the new round's number; None where there was nothing to try again.
        items: items in it by the error class they had failed with.
        tasks: failed tasks that were put back.
        given_up: items that are not tried again, by error class.
        reattached: an earlier call had planned and submitted this round.
    """

    job_id: str
    round: int | None
    items: dict[str, int] = field(default_factory=dict)
    tasks: int = 0
    given_up: dict[str, int] = field(default_factory=dict)
    slurm_job_ids: tuple[str, ...] = ()
    reattached: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {**asdict(self), "slurm_job_ids": list(self.slurm_job_ids)}


def submit(services: Services, config: Config, *, log: Log, actor: str = "slurmctl") -> Submitted:
    """Plan the job and submit its array, or go on where an earlier call was cut short.

    Raises:
        UserError: a mistake in the config or the input; nothing stays behind.
        ServiceError: a service can't be reached; calling again goes on.
    """
    spec = config.spec
    jobs = services.jobs(spec.id)
    job = jobs.find()
    planned = has_plan(services, job)
    if planned:
        check_identity(job, spec)
    # What can't be reached is found out before anything is written.
    services.objects.verify()
    services.slurm.version()
    code = upload.ship_code(services, config)
    if job is None or not planned:
        job = plan_job(services, spec, code, log)
    spec = standing_bundle(services, job, config.spec, log)
    digest = spec_store.ship_config(services, spec, job.shards, code)
    if finish_first_round(services, spec, job, log) or not planned:
        first = jobs.rounds()[0]
        jobs.audit(actor, "planned", {"tasks": first.tasks, "items": first.items})
    round_row = jobs.rounds()[0]
    tell_other_input(spec, round_row, version_of(spec.source, services.bucket), log)
    jobs.open(1)
    job = jobs.get()
    other = digest != job.config
    # A retry's round has workers of its own, with its options: those who wait look at them.
    latest = progress_of.open_round_of(job, jobs.rounds()) or round_row
    workers = ensure_workers(
        services, spec, replace(job, config=digest), latest, progress_of.tasks_of(latest), log
    )
    if other:
        # Not before Slurm has taken it: what it refuses must not be what others go on with.
        jobs.set_config(digest)
        log("code, settings or workers are others now; what starts from now on has the new ones")
    if not workers.reattached:
        audit_workers(services, spec.id, workers, actor)
    return Submitted(
        job_id=spec.id,
        round=latest.number,
        tasks=round_row.tasks,
        items=round_row.items,
        workers=workers.workers,
        slurm_job_ids=workers.slurm_job_ids,
        slurm_job_name=workers.slurm_job_name,
        reattached=workers.reattached,
    )


def progress(services: Services, job_id: JobId) -> Progress:
    """Where the job stands."""
    return progress_of.read_progress(services, job_id)


def poll(services: Services, job_id: JobId) -> JobStatus:
    """One look by someone who waits for the job."""
    return progress_of.look(services, job_id)


def resubmit(
    services: Services, job_id: JobId, *, most: int, log: Log, actor: str = "slurmctl"
) -> Workers | None:
    """New workers for a job whose workers are gone and whose tasks are not done.

    Args:
        services: the edges.
        job_id: the job.
        most: how often the latest round may have got new workers.
        log: told of progress.
        actor: who asks, for the audit trail.

    Returns:
        The workers of the round now; None if it had new ones `most` times already, or if
        somebody has cancelled them.
    """
    jobs = services.jobs(job_id)
    job = jobs.get()
    spec = spec_store.read_spec(services, job)
    rounds = jobs.rounds()
    round_row = progress_of.open_round_of(job, rounds) or rounds[-1]
    submissions = progress_of.of_round(jobs.submissions(), round_row.number)
    # One that was refused or cut short is no submission yet: it is carried out now.
    made = [each for each in submissions if each.state is SubmitState.SUBMITTED]
    if sum(not each.asked for each in made) > most:
        return None
    by = _cancelled_by(jobs, submissions)
    if by:
        log(f"the workers were cancelled by {by}; they are not replaced")
        return None
    try:
        workers = ensure_workers(
            services, spec, job, round_row, progress_of.tasks_of(round_row), log
        )
    except SubmissionCancelledError as error:
        log(f"{error}")
        return None
    if not workers.reattached:
        audit_workers(services, job_id, workers, actor)
    return workers


def _cancelled_by(jobs: JobTable, submissions: list[SubmissionRow]) -> str:
    """Who has cancelled the workers since the last were submitted; empty for nobody."""
    last = progress_of.latest(submissions)
    if last is None or not last.empty:
        return ""
    cancelled = [each.actor for each in jobs.events() if each.action == "cancelled"]
    return cancelled[-1] if cancelled else "somebody"


def losses(services: Services, job_id: JobId) -> list[WorkerFailure]:
    """The job's workers that died, why, and the tasks that they held."""
    return find_losses(services, job_id)


def plan_retry(
    services: Services,
    job_id: JobId,
    classes: list[str] | None = None,
    *,
    policy: Mapping[str, Any] | None = None,
    only: Iterable[str] | None = None,
) -> RetryPlan:
    """What `retry` with the same arguments would do now; writes nothing."""
    asked = _RetryRequest.of(classes, policy, only)
    jobs = services.jobs(job_id)
    job, rounds = jobs.get(), jobs.rounds()
    spec = spec_store.read_spec(services, job)
    return retrying.plan_retry(
        services, spec, job, rounds, spec.policy(asked.rules), asked.selector(spec)
    )


def retry(
    services: Services,
    job_id: JobId,
    classes: list[str] | None = None,
    *,
    policy: Mapping[str, Any] | None = None,
    only: Iterable[str] | None = None,
    most_items: int | None = None,
    log: Log,
    actor: str = "slurmctl",
) -> RetryResult:
    """Try failed items and tasks again: one new round, and workers for it.

    Two calls at the same time, or a call after one that was cut short, make one round.

    Args:
        services: the edges.
        job_id: the job.
        classes: error classes to try again; by the retry policy where None.
        policy: rules that go over the job's own, by error class.
        only: keys of the items to try again; all of the classes where None.
        most_items: a round of more items than this is not begun.
        log: told of progress.
        actor: who asks, for the audit trail.

    Raises:
        UserError: if a class or a rule is wrong, or the job is still at its first round.
    """
    asked = _RetryRequest.of(classes, policy, only)
    jobs = services.jobs(job_id)
    job = jobs.get()
    spec = spec_store.read_spec(services, job)
    rounds = jobs.rounds()
    last = rounds[-1] if rounds else None
    if last is None or (last.number == 0 and last.state is RoundState.PLANNING):
        raise UserError(f"job_id: {job_id!r} is not planned yet; run slurmctl submit first")
    attribute(services, job_id)
    if last.number > 0 and not _round_submitted(jobs, last):
        return _begun_retry(services, spec, job, last, log, actor)
    state = progress(services, job_id)
    if not state.complete:
        standing = jobs.rounds()[-1]
        if standing.number == last.number:
            if last.number == 0:
                check_running(job)
            return _still_running(services, state, last)
        # Another call has begun a round since.
        return _begun_retry(services, spec, job, standing, log, actor)
    # Of the rounds that were seen before the job was seen complete: a round that another call
    # begins meanwhile has the number of ours, and is one with it.
    plan = retrying.plan_retry(
        services, spec, job, rounds, spec.policy(asked.rules), asked.selector(spec)
    )
    for note in plan.notes:
        log(note)
    too_many = most_items is not None and sum(plan.items.values()) > most_items
    if plan.round is None or too_many:
        left = Counter(plan.given_up) + Counter(plan.items if too_many else {})
        return RetryResult(job_id, None, given_up=dict(left))
    begun = jobs.create_round(
        plan.round,
        "retry",
        asked.selector(spec).rounds,
        tasks_back=plan.tasks,
        only="" if asked.only is None else retrying.keep_keys(services, job_id, asked.only),
        slurm=plan.resources.slurm,
        delay_s=plan.resources.delay_s,
    )
    return _begun_retry(services, spec, job, begun, log, actor)


def cured(services: Services, job_id: JobId) -> dict[str, int]:
    """Failures that the job's retries have undone, by error class."""
    return dict(cured_by_class(services, job_id))


def _begun_retry(
    services: Services, spec: JobSpec, job: JobRow, round_row: RoundRow, log: Log, actor: str
) -> RetryResult:
    """Finish a round whose row says what it is to try again."""
    jobs = services.jobs(spec.id)
    number = round_row.number
    only = retrying.kept_keys(services, spec.id, round_row.only)
    selector = retrying.Selector(round_row.selector, only)
    items = retrying.failed_items(services, job, jobs.rounds()[:number], selector)
    planned = _planner(services, spec, job, log).plan(
        round_row, items, check=lambda: None, retried=lambda: dict(items.retried)
    )
    put_back = open_round(
        jobs,
        services.tasks(job),
        number,
        lambda: retrying.failed_tasks(services, job.job, selector),
    )
    if put_back:
        log(f"put {put_back:,} failed tasks back")
    back = sum(round_row.tasks_back.values())
    workers = ensure_workers(services, spec, job, round_row, planned.tasks + back, log)
    result = RetryResult(
        job_id=spec.id,
        round=number,
        items=dict(planned.retried),
        tasks=back,
        given_up=dict(items.given_up),
        slurm_job_ids=workers.slurm_job_ids,
        reattached=workers.reattached,
    )
    if not workers.reattached:
        detail = {**result.to_dict(), "config": job.config}
        jobs.audit(actor, "retried", cast("dict[str, Value]", detail))
        audit_workers(services, spec.id, workers, actor)
    return result


def aggregate(
    services: Services, job_id: JobId, *, log: Log, actor: str = "slurmctl"
) -> dict[str, Any]:
    """Publish the job's dataset.

    Returns:
        Its manifest, with the addresses of the version's folder (`dataset`) and of the manifest.

    Raises:
        UserError: if the job is not complete, or a part can't be read as it was committed.
    """
    # pyarrow takes a third of a second to import, and most commands have no use for it.
    from airflow_slurm_provider.coordinator import dataset

    jobs = services.jobs(job_id)
    spec = spec_store.read_spec(services, jobs.get())
    dataset.check_complete(services, job_id)
    manifest = dataset.merge(services, spec, log).to_dict()
    summary = {name: manifest[name] for name in ("items", "ok", "rows")}
    jobs.audit(actor, "published", cast("dict[str, Value]", summary))
    bucket, paths = services.site.bucket, services.paths(job_id)
    return {
        **manifest,
        "dataset": f"s3://{bucket}/{manifest['folder']}",
        "manifest": f"s3://{bucket}/{paths.manifest}",
    }


def merges_where(services: Services, job_id: JobId) -> str:
    """Where the job's config says that its parts are merged: ``local`` or ``slurm``."""
    return spec_store.read_spec(services, services.jobs(job_id).get()).aggregate.where


def merge_on_nodes(
    services: Services, job_id: JobId, *, log: Log, actor: str = "slurmctl"
) -> Submitted | None:
    """Start the merge of the job's parts on the cluster; `aggregate` publishes when it is done.

    Returns:
        The job that merges; None where there is nothing to merge.

    Raises:
        UserError: if the job is not complete, or its dataset is to be sorted.
    """
    from airflow_slurm_provider.coordinator import dataset

    spec = spec_store.read_spec(services, services.jobs(job_id).get())
    dataset.check_complete(services, job_id)
    with tempfile.TemporaryDirectory(prefix="airflow-slurm-merging-") as folder:
        config = dataset.plan_on_nodes(services, spec, Path(folder))
        return None if config is None else submit(services, config, log=log, actor=actor)


def check_classes(classes: list[str] | None) -> tuple[str, ...]:
    """The error classes, checked and in order.

    Raises:
        UserError: naming one that is not an error class.
    """
    known = [each.value for each in ErrorClass]
    for name in classes or []:
        if name not in known:
            raise UserError(f"errors: {name!r} is not an error class; use {', '.join(known)}")
    return tuple(sorted(set(classes or [])))


@dataclass(frozen=True, slots=True)
class _RetryRequest:
    """What a retry was asked for, checked."""

    classes: tuple[str, ...]
    rules: Rules
    only: frozenset[str] | None

    @classmethod
    def of(
        cls,
        classes: list[str] | None,
        policy: Mapping[str, Any] | None,
        only: Iterable[str] | None,
    ) -> _RetryRequest:
        rules = parse_rules(policy or {}, "policy")
        return cls(check_classes(classes), rules, None if only is None else frozenset(only))

    def selector(self, spec: JobSpec) -> retrying.Selector:
        """Which failures that means."""
        return retrying.Selector.of(spec.policy(self.rules), self.classes, self.only)


def _planner(services: Services, spec: JobSpec, job: JobRow, log: Log) -> Planner:
    return Planner(
        services.store(spec.id),
        services.tasks(job),
        services.jobs(spec.id),
        bundle_size.bundle_of(spec),
        log,
    )


def _round_submitted(jobs: JobTable, round_row: RoundRow) -> bool:
    return round_row.state is RoundState.OPEN and any(
        each.round_no == round_row.number and each.slurm_job_ids for each in jobs.submissions()
    )


def _still_running(services: Services, state: Progress, last: RoundRow) -> RetryResult:
    if last.number == 0:
        raise UserError(
            f"job_id: {state.job_id!r} has {state.unfinished_tasks:,} tasks that are not done; "
            f"retry when it is complete (slurmctl wait {state.job_id})"
        )
    submission = progress_of.latest(services.jobs(JobId(state.job_id)).submissions())
    return RetryResult(
        state.job_id,
        last.number,
        items=last.retried,
        slurm_job_ids=submission.slurm_job_ids if submission else (),
        reattached=True,
    )

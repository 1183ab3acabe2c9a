"""Planning a retry: which failed items go into a new round, which failed tasks go back.

What a retry selects is written to its round's row before anything else. So if a call is
interrupted, the next one finishes the round with the same selection, and two calls at the same
time make one round.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from airflow_slurm_provider.coordinator.spec.retry_policy import (
    Policy,
    RetryContext,
    RoundResources,
    Rules,
)
from airflow_slurm_provider.coordinator.spec.validation import validate
from airflow_slurm_provider.coordinator.status.dead_workers import failed_nodes, read_job_records
from airflow_slurm_provider.coordinator.status.failures import read_failures, retried_items
from airflow_slurm_provider.coordinator.status.snapshot import read_snapshot
from airflow_slurm_provider.units import format_count
from slurm_worker.errors import ErrorClass, ServiceError, UserError
from slurm_worker.protocol.job_rows import JobRow, RoundRow
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import TaskRow

#: Rounds that a class gets if the user has named it, whatever the policy says.
_UNLIMITED_ROUNDS = 1_000


@dataclass(frozen=True, slots=True)
class Selector:
    """Which failures are retried."""

    rounds: Mapping[str, int]  #: retry rounds by error class
    only: frozenset[str] | None = None  #: keys of the requested items; None for all

    def selects(self, error_class: str, rounds: int) -> bool:
        """Whether a failure of this class is retried after this many retry rounds."""
        return rounds < self.rounds.get(error_class, 0)


@dataclass(frozen=True, slots=True)
class RetryRequest:
    """The arguments of a retry, checked."""

    #: Error classes to retry, whatever the policy says; by the policy if empty
    classes: tuple[str, ...]
    rules: Rules  #: override the job's own rules
    only: frozenset[str] | None  #: keys of the items to retry; None for all

    @classmethod
    def of(
        cls,
        classes: Iterable[str] | None,
        policy: Mapping[str, Any] | None,
        only: Iterable[str] | None,
    ) -> RetryRequest:
        """Check the arguments.

        Raises:
            UserError: naming the class or the rule that is wrong.
        """
        known = [error_class.value for error_class in ErrorClass]
        for name in classes or ():
            if name not in known:
                raise UserError(f"errors: {name!r} is not an error class; use {', '.join(known)}")
        rules = validate(Rules, dict(policy or {}), "policy.")
        keys = None if only is None else frozenset(only)
        return cls(tuple(sorted(set(classes or ()))), rules, keys)

    def policy(self, spec: JobSpec) -> Policy:
        """The job's policy, with the request's rules over it."""
        return Policy(spec.retry, self.rules)

    def selector(self, spec: JobSpec) -> Selector:
        """Which failures are retried."""
        named = dict.fromkeys(self.classes, _UNLIMITED_ROUNDS)
        return Selector(named or self.policy(spec).rounds, self.only)


@dataclass(slots=True)
class FailedItems:
    """The failed items of a job's first rounds; iterating fills the counts by error class.

    Iterating raises a ServiceError if the store does not list all of them yet.
    """

    store: JobStore
    selector: Selector
    drafts: Sequence[int]  #: of the rounds, in order
    table: TaskTable | None = None  #: markers are checked against it; None for no check
    sizes: Sequence[int] = ()  #: numbers of items of the rounds; none if they are not known
    #: Of each round, how many retries its items have had; none if each round is a retry
    retries: Sequence[int] = ()
    #: Failures of done tasks by error class, read from the table before; none if not known
    totals: Counter[str] = field(default_factory=Counter)
    retried: Counter[str] = field(default_factory=Counter)
    given_up: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(
        cls, services: Services, job: JobRow, selector: Selector, rounds: Sequence[RoundRow]
    ) -> FailedItems:
        """Those of these rounds, which are the first of the job."""
        drafts, sizes = [row.draft for row in rounds], [row.items for row in rounds]
        totals = Counter(read_snapshot(services, job.job).done.failed)
        retries = [
            0 if row.appended else sum(not each.appended for each in rounds[1 : row.number + 1])
            for row in rounds
        ]
        store, table = services.store(job.job), services.tasks(job)
        return cls(store, selector, drafts, table, sizes, retries, totals)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Stream (key, item) of those to retry, in the order of their tasks."""
        self.retried.clear()
        self.given_up.clear()
        only = self.selector.only
        found: Counter[str] = Counter()
        with retried_items(self.store, self.drafts, self.sizes) as retried:
            rounds = range(len(self.drafts))
            for failure in read_failures(self.store, retried, rounds, self.table):
                found[failure.error_class] += failure.done
                if failure.superseded or (only is not None and failure.key not in only):
                    continue
                number = failure.round_no
                had = self.retries[number] if self.retries else number
                if self.selector.selects(failure.error_class, had):
                    self.retried[failure.error_class] += 1
                    yield failure.key, failure.item
                else:
                    self.given_up[failure.error_class] += 1
        self._check_listed(found)

    def _check_listed(self, found: Counter[str]) -> None:
        """Refuse a list that lacks markers: some stores list an object only after a while."""
        if missing := self.totals - found:
            raise ServiceError(
                f"{self.store.paths.done_folder}: the store does not list the markers of "
                f"{format_count(missing.total(), 'failed item')}",
                "try again; restore the markers if they were deleted",
            )


@dataclass(frozen=True, slots=True)
class RetryPlan:
    """What a retry would do."""

    round: int | None  #: the new round's number; None if there is nothing to retry
    items: dict[str, int]  #: its items by the error class of their failure
    tasks: dict[str, int]  #: failed tasks that it puts back, by error class
    given_up: dict[str, int]  #: failed items that are not retried, by error class
    missing: int  #: requested items that have not failed
    resources: RoundResources

    @property
    def notes(self) -> list[str]:
        """What the user should know about it."""
        missing = [f"{self.missing:,} of the requested items have not failed"]
        return [*self.resources.notes, *(missing if self.missing else [])]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        plan = asdict(self)
        resources = plan.pop("resources")
        return {**plan, **resources, "notes": self.notes}


def plan_retry(
    services: Services, spec: JobSpec, job: JobRow, rounds: list[RoundRow], request: RetryRequest
) -> RetryPlan:
    """Plan a retry of the failures of these rounds; writes nothing."""
    selector = request.selector(spec)
    items = FailedItems.of(services, job, selector, rounds)
    deque(items, maxlen=0)
    tasks = Counter(row.error_class for row in failed_tasks(services, job.job, selector))
    found = {*items.retried, *tasks}
    resources = RoundResources()
    if found:
        records = read_job_records(services, spec.id)
        memory = max((record.mem for record in records), default=0)
        nodes = failed_nodes(records, spec.slurm_classes)
        context = RetryContext([row.classes for row in rounds[1:]], nodes, memory >> 20)
        resources = request.policy(spec).resources(spec.slurm_options, found, context)
    failed = items.retried.total() + items.given_up.total()
    missing = 0 if selector.only is None else len(selector.only) - failed
    number = len(rounds) if found else None
    retried, given_up = dict(items.retried), dict(items.given_up)
    return RetryPlan(number, retried, dict(tasks), given_up, missing, resources)


def failed_tasks(services: Services, job_id: JobId, selector: Selector) -> list[TaskRow]:
    """Tasks that failed or were quarantined, with a class that is retried."""
    if selector.only is not None:
        return []
    ended = read_snapshot(services, job_id).ended
    return [row for row in ended if selector.selects(row.error_class, row.reopened)]


def store_keys(services: Services, job_id: JobId, keys: Iterable[str]) -> str:
    """Put a list of items' keys on S3, for any call that finishes the round; return its digest."""
    data = json.dumps(sorted(set(keys))).encode()
    digest = hashlib.sha256(data).hexdigest()
    services.objects.put_new(services.paths(job_id).inline(digest), data)
    return digest


def load_keys(services: Services, job_id: JobId, digest: str) -> frozenset[str] | None:
    """The list that `store_keys` has stored; None for no list."""
    if not digest:
        return None
    key = services.paths(job_id).inline(digest)
    if (data := services.objects.get(key)) is None:
        raise UserError(
            f"{key}: the list of items of an unfinished retry is missing from the bucket; "
            "restore it"
        )
    return frozenset(json.loads(data))

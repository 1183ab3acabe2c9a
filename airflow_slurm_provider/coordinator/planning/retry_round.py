"""Planning a retry: which failed items go into a new round, which failed tasks go back.

What a retry selects is written to its round's row before anything else, so that a call that
was cut short is finished by the next one with the same selection, and two calls at the same
time make one round.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import JobSpec
from airflow_slurm_provider.coordinator.spec.retry_policy import (
    Policy,
    RetryContext,
    RoundResources,
)
from airflow_slurm_provider.coordinator.status.dead_workers import failed_nodes, read_job_records
from airflow_slurm_provider.coordinator.status.failures import read_failures, retried_items
from airflow_slurm_provider.coordinator.status.snapshot import read_snapshot
from slurm_worker.errors import UserError
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.job_table import JobRow, RoundRow
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import TaskRow

#: Rounds that a class which the user has named gets, whatever the policy says.
_ALWAYS = 1_000


@dataclass(frozen=True, slots=True)
class Selector:
    """Which failures are tried again.

    Args:
        rounds: by error class, how many retry rounds its failures get.
        only: keys of the items that were asked for; None for all.
    """

    rounds: Mapping[str, int]
    only: frozenset[str] | None = None

    @classmethod
    def of(
        cls, policy: Policy, classes: Iterable[str], only: frozenset[str] | None = None
    ) -> Selector:
        """By the policy, or every failure of these classes where some are named."""
        named = dict.fromkeys(classes, _ALWAYS)
        return cls(named or policy.rounds, only)

    def wants(self, error_class: str, rounds: int) -> bool:
        """Whether a failure of this class is tried again after so many retry rounds."""
        return rounds < self.rounds.get(error_class, 0)

    def asks_for(self, key: str) -> bool:
        """Whether the item is one of those that were asked for."""
        return self.only is None or key in self.only


@dataclass(slots=True)
class FailedItems:
    """The failed items of a job's first rounds, split by a selector.

    Iterating yields (key, item) of those to try again and fills the counts.

    Args:
        store: the job's objects.
        selector: which are tried again.
        drafts: of the rounds, in order.
        table: its tasks; None for no check of the markers against them.
    """

    store: JobStore
    selector: Selector
    drafts: Sequence[int]
    table: TaskTable | None = None
    retried: Counter[str] = field(default_factory=Counter)
    given_up: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Stream the items in order of their tasks."""
        self.retried.clear()
        self.given_up.clear()
        with retried_items(self.store, self.drafts) as retried:
            rounds = range(len(self.drafts))
            for each in read_failures(self.store, retried, rounds, self.table):
                if each.superseded or not self.selector.asks_for(each.key):
                    continue
                if self.selector.wants(each.error_class, each.round_no):
                    self.retried[each.error_class] += 1
                    yield each.key, each.item
                else:
                    self.given_up[each.error_class] += 1


@dataclass(frozen=True, slots=True)
class RetryPlan:
    """What a retry would do.

    Args:
        round: the new round's number; None where there is nothing to try again.
        items: its items by the error class they had failed with.
        tasks: failed tasks that it puts back, by error class.
        given_up: failed items that are not tried again, by error class.
        missing: items that were asked for by key and have not failed.
        resources: what its array gets.
    """

    round: int | None
    items: dict[str, int]
    tasks: dict[str, int]
    given_up: dict[str, int]
    missing: int
    resources: RoundResources

    @property
    def notes(self) -> list[str]:
        """What whoever asked should know."""
        missing = [f"{self.missing:,} of the items that were asked for have not failed"]
        return [*self.resources.notes, *(missing if self.missing else [])]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {
            "round": self.round,
            "items": self.items,
            "tasks": self.tasks,
            "given_up": self.given_up,
            "missing": self.missing,
            "slurm": self.resources.slurm,
            "delay_s": self.resources.delay_s,
            "notes": self.notes,
        }


def plan_retry(
    services: Services,
    spec: JobSpec,
    job: JobRow,
    rounds: list[RoundRow],
    policy: Policy,
    selector: Selector,
) -> RetryPlan:
    """Look at the failures of these rounds; writes nothing."""
    number = len(rounds)
    items = failed_items(services, job, rounds, selector)
    for _ in items:
        pass
    tasks = Counter(row.error_class for row in failed_tasks(services, job.job, selector))
    found = {*items.retried, *tasks}
    resources = RoundResources()
    if found:
        resources = policy.resources(spec.slurm_options, found, _past(services, spec, rounds))
    failed = items.retried.total() + items.given_up.total()
    return RetryPlan(
        number if found else None,
        dict(items.retried),
        dict(tasks),
        dict(items.given_up),
        0 if selector.only is None else len(selector.only) - failed,
        resources,
    )


def failed_items(
    services: Services, job: JobRow, rounds: Sequence[RoundRow], selector: Selector
) -> FailedItems:
    """The failed items of these rounds, a job's first."""
    drafts = [each.draft for each in rounds]
    return FailedItems(services.store(job.job), selector, drafts, services.tasks(job))


def failed_tasks(services: Services, job_id: JobId, selector: Selector) -> list[TaskRow]:
    """Tasks that failed or were quarantined with a class that is to be tried again."""
    if selector.only is not None:
        return []
    ended = read_snapshot(services, job_id).ended
    return [row for row in ended if selector.wants(row.error_class, row.reopened)]


def keep_keys(services: Services, job_id: JobId, keys: Iterable[str]) -> str:
    """Put a list of items' keys on S3, for whoever finishes the round; return its digest."""
    data = json.dumps(sorted(set(keys))).encode()
    digest = hashlib.sha256(data).hexdigest()
    services.objects.put_new(services.paths(job_id).given(digest), data)
    return digest


def kept_keys(services: Services, job_id: JobId, digest: str) -> frozenset[str] | None:
    """The list that `keep_keys` put there; None for no list."""
    if not digest:
        return None
    data = services.objects.get(services.paths(job_id).given(digest))
    if data is None:
        raise UserError(
            f"{services.paths(job_id).given(digest)}: the list of items of a retry that was begun "
            "is missing from the bucket; restore it"
        )
    return frozenset(json.loads(data))


def _past(services: Services, spec: JobSpec, rounds: list[RoundRow]) -> RetryContext:
    endings = read_job_records(services, spec.id)
    memory = max((each.mem for each in endings), default=0)
    nodes = failed_nodes(endings, spec.slurm_classes)
    return RetryContext([each.classes for each in rounds[1:]], nodes, memory >> 20)

"""Rows of rounds, rebuilt from the drafts that their markers were made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from airflow_slurm_provider.coordinator.maintenance.repair.clock import jobs_at
from airflow_slurm_provider.coordinator.maintenance.repair.drafts import find_plan
from airflow_slurm_provider.coordinator.maintenance.repair.report import RepairResult
from airflow_slurm_provider.coordinator.planning.planner import DraftSummary
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.failures import read_failures, retried_items
from slurm_worker.errors import UserError
from slurm_worker.protocol import keys
from slurm_worker.protocol.job_rows import RoundRow
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.keys import RoundState
from slurm_worker.protocol.tasks import TaskRow


class RoundRepair:
    """Rebuilds the rows of rounds; `found` collects what was repaired."""

    def __init__(
        self, services: Services, store: JobStore, found: RepairResult, log: Callable[[str], None]
    ) -> None:
        self._services = services
        self._store = store
        self._found = found
        self._log = log
        self._job_id = store.paths.job
        #: Drafts of the rounds that were rebuilt, by their numbers.
        self._drafts: dict[int, int] = {}

    def existing(self) -> dict[int, RoundRow]:
        """The rows that the table has, by the rounds' numbers."""
        rounds = self._services.jobs(self._job_id).rounds()
        return {round_row.number: round_row for round_row in rounds}

    def count_open(self, existing: Mapping[int, RoundRow]) -> int:
        """The number of rounds that are open for work, where the job's row was lost."""
        paths = self._store.paths
        found = {
            folder: {int(key.removeprefix(folder)[:3]) for key in self._store.objects.list(folder)}
            for folder in (paths.segments_folder, paths.done_folder)
        }
        committed = found[paths.done_folder] | {
            number for number, row in existing.items() if row.state is RoundState.OPEN
        }
        if not committed:
            raise UserError(
                f"job_id: no task of {self._job_id!r} is committed, so S3 does not show whether "
                "its plan was complete; submit the job again to plan what is missing"
            )
        rounds = max(committed) + 1
        for number in sorted(found[paths.segments_folder] - set(range(rounds))):
            self._found.unrepaired.append(
                f"round {number} has segments and no committed task, so S3 does not show whether "
                f"its plan was complete; run the retry again"
            )
        return rounds

    def rebuild(
        self, number: int, born: float, *, known: int, source: Callable[[], str]
    ) -> RoundRow:
        """A round whose row is missing, from its segments; writes nothing.

        Args:
            number: the round.
            born: when the job was created, in seconds since the epoch.
            known: the round's draft where a row names it; 0 where none does.
            source: the path of the job's input, for a job that was planned without a draft.

        Raises:
            UserError: if its segments are missing, or its markers are not of them.
        """
        self._found.rounds.append(number)
        self._log(f"the row of round {number} is missing; rebuilding it from its segments")
        plan = find_plan(self._store, number, known, self._draft_of_rows(number))
        entries = list(self._store.objects.entries(self._store.paths.segments(number)))
        at_ms = int(max((entry.modified for entry in entries), default=born) * 1000)
        if not plan.tasks:
            self._found.unrepaired.append(
                f"round {number} has no items of its own, and only the table knew which failed "
                "tasks it put back; run the retry again"
            )
        title = DraftSummary.read(self._store, number, plan.draft)
        retried: dict[str, int] = {}
        if number:
            path, retried = "retry", title.retried if title else self._retried(number)
        else:
            path = title.source if title else source()
        self._drafts[number] = plan.draft
        return RoundRow(
            number,
            RoundState.OPEN,
            path,
            {},
            plan.tasks,
            plan.items,
            0,
            at_ms,
            at_ms,
            retried,
            version=title.version if title else "",
            draft=plan.draft,
        )

    def write(self, found: RoundRow) -> None:
        """Write a rebuilt round's row, unless this is a dry run."""
        if not self._found.dry_run:
            jobs = jobs_at(self._services, self._job_id, found.created_ms / 1000)
            row = jobs.create_round(
                found.number, found.source, version=found.version, draft=found.draft
            )
            if row.draft != found.draft:
                jobs.adopt_draft(found.number, found.draft)
            jobs.open_round(found.number, found.tasks, found.items, found.retried)

    def _draft_of_rows(self, number: int) -> int:
        """The draft that a round's task rows name; 0 where none of them is left.

        One query; more only where task rows are lost, too. The number of shards is not known
        here: the job's row may be lost.
        """
        for shard in range(keys.MAX_SHARDS):
            pk, after = keys.task_pk(self._job_id, shard), keys.before_round(number)
            row = next(self._services.rows.query(pk, after=after, limit=1), None)
            if row is not None and (task := TaskRow.from_row(row)).round_no == number:
                return keys.draft_of(task.where.segment)
        return 0

    def _retried(self, number: int) -> dict[str, int]:
        """The number of a retry's items by the class that they had failed with."""
        counts: Counter[str] = Counter()
        known = {**self._drafts, **{n: found.draft for n, found in self.existing().items()}}
        drafts = [known.get(n, 0) for n in range(number + 1)]
        with (
            retried_items(self._store, drafts[:number]) as before,
            retried_items(self._store, drafts) as upto,
        ):
            for failure in read_failures(self._store, before, range(number), None):
                if not failure.superseded and upto.superseded(failure.key, number - 1):
                    counts[failure.error_class] += 1
        return dict(counts)

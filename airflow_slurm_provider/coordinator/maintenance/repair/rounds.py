"""Rows of rounds, rebuilt from the drafts that their markers were made from; of submissions."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from airflow_slurm_provider.coordinator.maintenance.repair.context import RepairContext
from airflow_slurm_provider.coordinator.planning.planner import DraftSummary, SliceTotals
from airflow_slurm_provider.coordinator.status.failures import read_failures, retried_items
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol import keys
from slurm_worker.protocol.job_rows import RoundRow
from slurm_worker.protocol.job_store import ForeignMarker, JobStore, Marker
from slurm_worker.protocol.keys import RoundState
from slurm_worker.protocol.tasks import TaskRow

_LOG = re.compile(r"(\d{3})-(\d+)/((\d+)_\d+)")


class RoundRepair:
    """Rebuilds the rows of rounds."""

    def __init__(self, context: RepairContext) -> None:
        self._context = context
        self._store = context.store
        self._result = context.result
        #: Drafts of the rounds that were rebuilt, by their numbers.
        self._drafts: dict[int, int] = {}

    def existing(self) -> dict[int, RoundRow]:
        """The rows that the table has, by the rounds' numbers."""
        return {round_row.number: round_row for round_row in self._context.jobs.rounds()}

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
                f"job_id: no task of {paths.job!r} is committed, so S3 does not show whether its "
                "plan was complete; submit the job again to plan what is missing"
            )
        rounds = max(committed) + 1
        for number in sorted(found[paths.segments_folder] - set(range(rounds))):
            self._result.unrepaired.append(
                f"round {number} has segments and no committed task, so S3 does not show whether "
                f"its plan was complete; run the retry again"
            )
        return rounds

    def rebuild(
        self, number: int, born: float, *, known: int, source: Callable[[], str]
    ) -> RoundRow:
        """A round whose row is missing, from its segments; writes nothing.

        `born` is when the job was created, in seconds since the epoch; `known` is the round's
        draft, or 0 where no row names it; `source` gives the path of the job's input, for a job
        that was planned without a draft.

        Raises:
            UserError: if its segments are missing, or its markers are not of them.
        """
        self._result.rounds.append(number)
        self._context.log(f"the row of round {number} is missing; rebuilding it from its segments")
        draft, plan = _find_plan(self._store, number, known, self._draft_of_rows(number))
        entries = list(self._store.objects.entries(self._store.paths.segments(number)))
        at_ms = int(max((entry.modified for entry in entries), default=born) * 1000)
        if not plan.tasks:
            self._result.unrepaired.append(
                f"round {number} has no items of its own, and only the table knew which failed "
                "tasks it put back; run the retry again"
            )
        retried: dict[str, int] = {}
        if number:
            # Only a round that adds items says what they were made from.
            path = plan.source if draft and plan.source else "retry"
            if path == "retry":
                retried = plan.retried if draft else self._retried(number)
        else:
            path = plan.source if draft else source()
        self._drafts[number] = draft
        totals = (plan.tasks, plan.items, 0, at_ms, at_ms, retried)
        return RoundRow(
            *(number, RoundState.OPEN, path, {}, *totals),
            version=plan.version,
            draft=draft,
            appended=bool(number) and path != "retry",
        )

    def write(self, found: RoundRow) -> None:
        """Write a rebuilt round's row, unless this is a dry run."""
        if self._context.write:
            jobs = self._context.jobs_at(found.created_ms / 1000)
            row = jobs.create_round(
                found.number,
                found.source,
                version=found.version,
                draft=found.draft,
                appended=found.appended,
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
            pk, after = keys.task_pk(self._store.paths.job, shard), keys.before_round(number)
            row = next(self._context.services.rows.query(pk, after=after, limit=1), None)
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


def repair_submissions(context: RepairContext, rounds: int) -> None:
    """Rebuild the missing rows of the submissions of the first `rounds` rounds, from logs."""
    logs = context.store.paths.logs
    # The logs are listed first: a submission has its row before it has a worker.
    entries = list(context.store.objects.entries(logs))
    existing = {(row.round_no, row.number) for row in context.jobs.submissions()}
    arrays: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
    workers: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
    first: dict[tuple[int, int], float] = {}
    for entry in entries:
        match = _LOG.match(entry.key.removeprefix(logs))
        if match is None:
            continue
        which = int(match.group(1)), int(match.group(2))
        if which in existing or which[0] >= rounds:
            continue
        arrays[which].add(match.group(4))
        workers[which].add(match.group(3))
        first[which] = min(first.get(which, entry.modified), entry.modified)
    for which in sorted(arrays):
        label = f"{which[0]:03}-{which[1]}"
        context.result.submissions.append(label)
        if context.write:
            jobs = context.jobs_at(first[which])
            count, ids = len(workers[which]), sorted(arrays[which], key=int)
            token = _token(context, label, ids)
            # None: another process has rebuilt the row meanwhile, from the same logs.
            jobs.record_submitted(jobs.record_intent(*which, count, count, token=token), ids)


def _token(context: RepairContext, label: str, slurm_job_ids: list[str]) -> str:
    """The token in the arrays' names, which identifies them; empty where Slurm does not say."""
    prefix = f"{context.store.paths.job}.{label}."
    try:
        names = context.services.slurm.names(slurm_job_ids, prefix)
    except (ServiceError, UserError) as error:
        context.log(f"{error}; arrays of submission {prefix[:-1]} are not recognised")
        return ""
    tokens = {name.removeprefix(prefix).partition(".")[0] for name in names.values()}
    return min(tokens, default="")


def _find_plan(
    store: JobStore, round_no: int, known: int, in_rows: int
) -> tuple[int, DraftSummary]:
    """The draft of a round from whose slices all its markers were made, and its summary.

    Memory grows with the number of markers by a digest. Requests: a GET per marker of the round,
    and one per segment of each draft.

    `known` is the draft that the job's row names, or 0. `in_rows` is the draft that task rows name,
    or 0: it is taken if several drafts have the same items, as rows are read from its segments.

    Raises:
        UserError: if there is none that is whole, or several that differ.
    """
    markers = {
        sequence: marker
        for marker in store.markers(round_no)
        if (sequence := keys.parse_task_id(marker.task)[1]) < keys.MAX_TASKS
    }
    found = store.objects.list(store.paths.segments(round_no))
    drafts = {draft for key in found if (draft := store.paths.draft_in(key)) is not None}
    plans: dict[str, tuple[int, DraftSummary]] = {}
    why = f"there are no segments below {store.paths.segments(round_no)}; restore them"
    for draft in sorted({known} if known else drafts):
        try:
            plan = _read_plan(store, round_no, draft, markers)
        except UserError as error:
            why = str(error)
        else:
            if plan.sha256 not in plans or draft == in_rows:
                plans[plan.sha256] = draft, plan
    if len(plans) > 1:
        raise UserError(
            f"job_id: round {round_no} of {store.paths.job!r} has several drafts below "
            f"{store.paths.segments(round_no)} that its results agree with: "
            f"{', '.join(str(draft) for draft, _ in plans.values())}; delete the wrong ones"
        )
    if plans:
        return plans.popitem()[1]
    if round_no and not markers and not drafts:
        return 0, DraftSummary(0, 0, "")
    raise UserError(
        f"job_id: the input of {store.paths.job!r} can't be rebuilt, round {round_no}: {why}; or "
        "submit it under another job_id"
    )


def _read_plan(
    store: JobStore, round_no: int, draft: int, markers: dict[int, Marker]
) -> DraftSummary:
    """A draft, checked to be whole and the one that the markers were made from."""
    tally = SliceTotals()
    for sequence, where in enumerate(store.planned_slices(round_no, draft)):
        if sequence in markers:
            markers[sequence].check(where)
        tally.add(where)
    beyond = max(markers, default=-1)
    if beyond >= tally.tasks:
        raise ForeignMarker(
            f"done/{markers[beyond].task}.done belongs to a task without a slice below "
            f"{store.paths.segments(round_no)}; restore its segments"
        )
    if not draft:
        return DraftSummary(*tally.figures)
    summary = DraftSummary.read(store, round_no, draft)
    if summary is None or not tally.match(summary):
        raise UserError(
            f"segments of draft {draft} are missing below {store.paths.segments(round_no)}; "
            "restore them"
        )
    return summary

"""Finds the draft of a round whose row is lost: the one that its markers were made from.

Memory grows with the number of markers by a digest. Requests: a GET per marker of the round,
and one per segment of each draft.
"""

from __future__ import annotations

from dataclasses import dataclass

from airflow_slurm_provider.coordinator.planning.planner import DraftSummary, SliceTotals
from slurm_worker.errors import UserError
from slurm_worker.protocol import keys
from slurm_worker.protocol.job_store import ForeignMarker, JobStore, Marker
from slurm_worker.protocol.keys import MAX_TASKS


@dataclass(frozen=True, slots=True)
class RebuiltPlan:
    """A draft and its totals."""

    draft: int
    tasks: int
    items: int
    sha256: str


def find_plan(store: JobStore, round_no: int, known: int = 0, in_rows: int = 0) -> RebuiltPlan:
    """The draft of a round from whose slices all its markers were made.

    Args:
        store: the job's objects.
        round_no: the round.
        known: the draft, where the job's row names it; 0 where it does not.
        in_rows: the draft that task rows name, where there are any: of several drafts with the
            same items it is the one whose segments these rows are read from.

    Raises:
        UserError: if there is none that is whole, or several that differ.
    """
    markers = {
        sequence: marker
        for marker in store.markers(round_no)
        if (sequence := keys.parse_task_id(marker.task)[1]) < MAX_TASKS
    }
    found = store.objects.list(store.paths.segments(round_no))
    drafts = {draft for key in found if (draft := store.paths.draft_in(key)) is not None}
    plans: dict[str, RebuiltPlan] = {}
    why = f"there are no segments below {store.paths.segments(round_no)}; restore them"
    for draft in sorted({known} if known else drafts):
        try:
            plan = _read(store, round_no, draft, markers)
        except UserError as error:
            why = str(error)
        else:
            if plan.sha256 not in plans or draft == in_rows:
                plans[plan.sha256] = plan
    if len(plans) > 1:
        raise UserError(
            f"job_id: round {round_no} of {store.paths.job!r} has several drafts below "
            f"{store.paths.segments(round_no)} that its results agree with: "
            f"{', '.join(str(plan.draft) for plan in plans.values())}; delete the wrong ones"
        )
    if plans:
        return plans.popitem()[1]
    if round_no and not markers and not drafts:
        return RebuiltPlan(0, 0, 0, "")
    raise UserError(
        f"job_id: the input of {store.paths.job!r} can't be rebuilt, round {round_no}: {why}; or "
        "submit it under another job_id"
    )


def _read(store: JobStore, round_no: int, draft: int, markers: dict[int, Marker]) -> RebuiltPlan:
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
    title = DraftSummary.read(store, round_no, draft)
    if draft and (title is None or not tally.match(title)):
        raise UserError(
            f"segments of draft {draft} are missing below {store.paths.segments(round_no)}; "
            "restore them"
        )
    return RebuiltPlan(draft, *tally.figures)

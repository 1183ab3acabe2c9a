"""A job's arrays: those that its submissions' rows name, and those that only Slurm knows.

A submitter that was killed between ``sbatch`` and its row leaves an intent. Its token is in the
name of the array that Slurm may have, by which `submit` and all others look it up.
Requests: none to AWS. Only where there is an intent: one ``squeue``, and one ``sacct`` for names
that are not in the queue.
"""

from __future__ import annotations

from collections.abc import Sequence

from airflow_slurm_provider.coordinator.services import Log, Services
from airflow_slurm_provider.slurm.array_state import ArrayKey, ArrayState, named
from airflow_slurm_provider.slurm.queries import VANISHED_AFTER_S
from slurm_worker.protocol.job_rows import SubmissionRow, job_name
from slurm_worker.protocol.keys import JobId, SubmitState

_POLL_S = 5.0


def known_arrays(job_id: JobId, submission: SubmissionRow) -> list[ArrayKey]:
    """The arrays that a submission's row names."""
    return [
        ArrayKey(slurm_job_id, job_name(job_id, submission, part))
        for part, slurm_job_id in enumerate(submission.slurm_job_ids)
    ]


def open_names(job_id: JobId, submission: SubmissionRow) -> list[str]:
    """The names of a submission's arrays that Slurm may have, or get, and the row does not name."""
    parts = range(len(submission.slurm_job_ids), len(submission.sizes()))
    return [job_name(job_id, submission, part) for part in parts]


def arrays_of(
    services: Services, job_id: JobId, submissions: Sequence[SubmissionRow]
) -> list[ArrayKey]:
    """All arrays of some submissions, in their order, each with its id.

    Raises:
        ServiceError: if there is an intent and Slurm does not show whether it has the array.
    """
    intents = (row for row in submissions if row.state is SubmitState.INTENT)
    doubtful = [name for row in intents for name in open_names(job_id, row)]
    found = services.slurm.find(doubtful) if doubtful else {}
    return [
        key
        for row in submissions
        for key in (
            *known_arrays(job_id, row),
            *(ArrayKey(found[name], name) for name in open_names(job_id, row) if name in found),
        )
    ]


def settled_state(services: Services, arrays: Sequence[ArrayKey], log: Log) -> ArrayState:
    """Some arrays as one; queried again while Slurm does not show whether they have ended.

    It never does after ``slurmctld`` has lost its state. So the arrays count as ended when this
    process has seen that for `VANISHED_AFTER_S`: what an earlier command has seen is not known.
    """
    deadline = services.clock.boot_time() + VANISHED_AFTER_S + _POLL_S
    array = services.slurm.together(arrays)
    if array.unknown:
        log(
            f"Slurm does not show whether workers of {named(ids_of(arrays))} are left; querying it "
            f"for {VANISHED_AFTER_S:.0f} s"
        )
    while array.unknown and services.clock.boot_time() < deadline:
        services.clock.sleep(_POLL_S)
        array = services.slurm.together(arrays)
    return array


def ids_of(arrays: Sequence[ArrayKey]) -> list[str]:
    """Slurm's ids, for people."""
    return [array.slurm_job_id for array in arrays]

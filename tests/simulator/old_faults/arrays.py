"""Old faults of arrays: cancels that leave workers, and jobs of others that are taken for ours."""

from __future__ import annotations

from contextlib import AbstractContextManager
from unittest import mock

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.arrays import ids_of, known_arrays
from airflow_slurm_provider.coordinator.submission import control
from slurm_worker.protocol.keys import JobId
from tests.simulator.old_faults.fault import OldFault

# --- 7: a cancel that skips submissions whose id is not known -------------------------------------


def cancels_known_arrays(
    services: Services, job_id: JobId, *, actor: str = "slurmctl"
) -> list[str]:
    """Cancel the arrays that rows name."""
    jobs = services.jobs(job_id)
    jobs.get()
    known = [key for row in jobs.submissions() for key in known_arrays(job_id, row)]
    cancelled = ids_of(services.slurm.cancel(known))
    if cancelled:
        jobs.audit(actor, "cancelled", {"arrays": ", ".join(cancelled)})
    return cancelled


def _skips_unknown() -> AbstractContextManager[object]:
    return mock.patch.object(control, "cancel", cancels_known_arrays)


ARRAY_FAULTS = (
    OldFault(
        "cancel skips submissions whose id is not known yet",
        "nodes, on which an array ran on after a cancel that found none",
        "after a cancel that succeeded",
        26,
        put_back=_skips_unknown,
    ),
)

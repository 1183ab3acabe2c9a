"""Old faults of arrays: cancels that leave workers, and jobs of others that are taken for ours."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.arrays import ids_of, known_arrays
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.slurm import queries, submission
from airflow_slurm_provider.slurm.array_state import ArrayKey
from airflow_slurm_provider.slurm.client import SlurmClient
from airflow_slurm_provider.slurm.transport import Transport
from slurm_worker.node import slurm_variables
from slurm_worker.protocol.keys import JobId
from tests.simulator import world
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


# --- 13: an array is known by its number alone ----------------------------------------------------


class CancelsByNumber(SlurmClient):
    """Cancels whatever has the number of an array that seems to be left."""

    def __init__(self, transport: Transport, *args: Any) -> None:
        super().__init__(transport, *args)
        self.transport = transport

    def cancel(self, arrays: Collection[ArrayKey]) -> list[ArrayKey]:
        """See `SlurmClient.cancel`."""
        cancelled = []
        for array in arrays:
            if array.slurm_job_id and not self.array(array).ended:
                self.transport.run(f"scancel {array.slurm_job_id}")
                cancelled.append(array)
        return cancelled


def splits_by_number(text: str, arrays: Iterable[ArrayKey], fields: int) -> dict[ArrayKey, str]:
    """The lines that have an array's number, whatever the job's name."""
    found: dict[ArrayKey, list[str]] = {array: [] for array in arrays}
    for line in text.splitlines():
        words = line.strip().split("|", fields + 1)
        for array, lines in found.items():
            if words[0].partition("_")[0] == array.slurm_job_id:
                lines.append("|".join(words[:fields]))
    return {array: "\n".join(lines) for array, lines in found.items()}


def _by_number() -> AbstractContextManager[object]:
    return mock.patch.object(queries, "split_by_array", splits_by_number)


@contextmanager
def _cancels_by_number() -> Iterator[None]:
    with _by_number(), mock.patch.object(world, "SlurmClient", CancelsByNumber):
        yield


# --- 15: variables of the account, and the word of scancel ----------------------------------------


class CancelsOnce(SlurmClient):
    """Takes scancel's exit code for its work."""

    def __init__(self, transport: Transport, *args: Any) -> None:
        super().__init__(transport, *args)
        self.transport = transport

    def cancel(self, arrays: Collection[ArrayKey]) -> list[ArrayKey]:
        """See `SlurmClient.cancel`."""
        alive = self.alive({array.name for array in arrays})
        for name in sorted({array.name for array in arrays}):
            self.transport.run(submission.one_line(submission.CANCEL, name))
        return sorted(alive)


def _cancels_once() -> AbstractContextManager[object]:
    return mock.patch.object(world, "SlurmClient", CancelsOnce)


def _as_the_account_has_it() -> AbstractContextManager[object]:
    return mock.patch.object(slurm_variables, "cleaned", dict)


def _of_sbatch(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name.startswith("SBATCH_")}


@contextmanager
def _exports_all() -> Iterator[None]:
    exported = (*submission.EXPORTED, "SBATCH_ARRAY_INX")
    with (
        mock.patch.object(slurm_variables, "cleaned", _of_sbatch),
        mock.patch.object(submission, "EXPORTED", exported),
    ):
        yield


ARRAY_FAULTS = (
    OldFault(
        "cancel skips submissions whose id is not known yet",
        "nodes, on which an array ran on after a cancel that found none",
        "after a cancel that succeeded",
        15,
        put_back=_skips_unknown,
    ),
    OldFault(
        "queries know an array by its number alone",
        "trust in deaths, starts and counts, of another job",
        "of others|shown as ours",
        15,
        put_back=_by_number,
    ),
    OldFault(
        "scancel by number, after slurmctld has lost its state",
        "an unrelated array of the same account",
        "of others, is cancelled",
        15,
        put_back=_cancels_by_number,
    ),
    OldFault(
        "squeue and scancel read the account's variables",
        "nodes, on which arrays ran on after a cancel that saw none",
        "after a cancel that succeeded|is refused again|does not end",
        53,
        put_back=_as_the_account_has_it,
    ),
    OldFault(
        "sbatch reads the account's variables",
        "workers: the array had another size than the script's",
        "is not its script's size",
        0,
        put_back=_exports_all,
    ),
    OldFault(
        "a cancel that Slurm did not carry out is reported as done",
        "nodes, on which the array ran on",
        "after a cancel that succeeded",
        228,
        put_back=_cancels_once,
    ),
)

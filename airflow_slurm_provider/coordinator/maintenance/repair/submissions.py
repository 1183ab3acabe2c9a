"""Rows of submissions, rebuilt from the logs that their workers have uploaded."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable

from airflow_slurm_provider.coordinator.maintenance.repair.clock import jobs_at
from airflow_slurm_provider.coordinator.maintenance.repair.report import RepairResult
from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.keys import JobId

_LOG = re.compile(r"(\d{3})-(\d+)/((\d+)_\d+)")

Log = Callable[[str], None]


def repair_submissions(
    services: Services, store: JobStore, found: RepairResult, log: Log, rounds: int
) -> None:
    """Rebuild the missing rows of the submissions of the first `rounds` rounds."""
    job_id = store.paths.job
    # The logs are listed first: a submission has its row before it has a worker.
    entries = list(store.objects.entries(store.paths.logs))
    existing = {(row.round_no, row.number) for row in services.jobs(job_id).submissions()}
    arrays: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
    workers: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
    first: dict[tuple[int, int], float] = {}
    for entry in entries:
        match = _LOG.match(entry.key.removeprefix(store.paths.logs))
        if match is None:
            continue
        which = int(match.group(1)), int(match.group(2))
        if which in existing or which[0] >= rounds:
            continue
        arrays[which].add(match.group(4))
        workers[which].add(match.group(3))
        first[which] = min(first.get(which, entry.modified), entry.modified)
    for which in sorted(arrays):
        found.submissions.append(f"{which[0]:03}-{which[1]}")
        if not found.dry_run:
            jobs = jobs_at(services, job_id, first[which])
            count, ids = len(workers[which]), sorted(arrays[which], key=int)
            token = _token(services, job_id, which, ids, log)
            # None: another process has rebuilt the row meanwhile, from the same logs.
            jobs.record_submitted(jobs.record_intent(*which, count, count, token=token), ids)


def _token(
    services: Services, job_id: JobId, which: tuple[int, int], slurm_job_ids: list[str], log: Log
) -> str:
    """The token in the arrays' names, which identifies them; empty where Slurm does not say."""
    prefix = f"{job_id}.{which[0]:03}-{which[1]}."
    try:
        names = services.slurm.names(slurm_job_ids, prefix)
    except (ServiceError, UserError) as error:
        log(f"{error}; arrays of submission {prefix[:-1]} are not recognised")
        return ""
    tokens = {name.removeprefix(prefix).partition(".")[0] for name in names.values()}
    return min(tokens, default="")

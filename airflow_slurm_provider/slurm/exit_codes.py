"""What the exit codes of workers mean.

A worker whose credentials have expired, or whose clock is wrong, can't write to the table or to S3
why it ends. Its exit code reaches the coordinator all the same, through Slurm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from airflow_slurm_provider.units import format_count
from slurm_worker.errors import ErrorClass
from slurm_worker.node.slurm_job import WorkerExit

_CLASSES = {
    str(WorkerExit.CONFIG.value): ErrorClass.HANDLER_BUG,
    str(WorkerExit.INFRASTRUCTURE.value): ErrorClass.NODE_FAILURE,
    str(WorkerExit.NO_PROGRESS.value): ErrorClass.NODE_FAILURE,
    str(WorkerExit.CREDENTIALS.value): ErrorClass.NODE_FAILURE,
    str(WorkerExit.CLOCK.value): ErrorClass.NODE_FAILURE,
}


@dataclass(frozen=True, slots=True)
class _Reason:
    why: str
    fix: str


_REASONS = {
    str(WorkerExit.CREDENTIALS.value): _Reason(
        "AWS credentials on the node were missing or had expired",
        "renew them and submit the job again; with aws.node_role_arn, slurmctl wait renews them",
    ),
    str(WorkerExit.CLOCK.value): _Reason(
        "the node's clock was wrong",
        "ask the site to set it by NTP, or leave the node out with slurm.exclude",
    ),
}


def error_class_of(exit_code: str) -> ErrorClass:
    """The class of a failed worker with this exit code, ``<code>:<signal>``."""
    return _CLASSES.get(_number(exit_code), ErrorClass.WORKER_CRASH)


def reason_of(exit_code: str) -> str:
    """Why a worker ended, and what to do; empty where its exit code does not say it."""
    reason = _REASONS.get(_number(exit_code))
    return f"{reason.why}; {reason.fix}" if reason else ""


def reasons_of(exit_codes: Iterable[str]) -> str:
    """The reasons of several workers with their numbers; empty where no exit code says one."""
    counts = Counter(map(_number, exit_codes))
    return "; ".join(
        f"{format_count(counts[code], 'worker')} ended because {reason.why}: {reason.fix}"
        for code, reason in _REASONS.items()
        if counts[code]
    )


def _number(exit_code: str) -> str:
    return exit_code.partition(":")[0]

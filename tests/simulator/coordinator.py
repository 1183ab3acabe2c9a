"""A user who retries failed tasks with calls that are interrupted, that pause, and are repeated.

The writes are the project's own (`generations.open_round`, `JobTable`, `TaskTable`). This module
repeats their selection and order from `coordinator.job.retry`, because the worker imports nothing
of the provider.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from slurm_worker.errors import ErrorClass, ServiceError
from slurm_worker.protocol.job_table import JobTable
from slurm_worker.protocol.keys import SubmitState, TaskState
from slurm_worker.protocol.task_table import TaskTable
from slurm_worker.protocol.tasks import TaskRow
from tests.simulator.stores.network import Network

_ARRAY = 1000


class OpenRound(Protocol):
    """`generations.open_round`, or what breaks its rule on purpose."""

    def __call__(
        self,
        jobs: JobTable,
        table: TaskTable,
        round_no: int,
        failed: Callable[[], Iterable[TaskRow]],
    ) -> int:
        """Put tasks back and open the round."""


class Cluster:
    """Slurm: starts the workers of a token once, even if a submit is repeated."""

    def __init__(self, start: Callable[[], None]) -> None:
        self._start = start
        self._tokens: set[str] = set()

    def submit(self, token: str) -> None:
        """``sbatch``, under the lock of its token."""
        if token not in self._tokens:
            self._tokens.add(token)
            self._start()


class Coordinator:
    """One call of the user.

    Args:
        jobs: the job's own rows, over a network with faults.
        table: its task rows, over the same network.
        network: the connection to the cluster.
        cluster: where workers are submitted.
        open_round: how a round is opened.
        sees_why: whether accounting shows this call why workers died.
    """

    def __init__(
        self,
        jobs: JobTable,
        table: TaskTable,
        network: Network,
        cluster: Cluster,
        open_round: OpenRound,
        *,
        sees_why: bool,
    ) -> None:
        self._jobs = jobs
        self._table = table
        self._network = network
        self._cluster = cluster
        self._open_round = open_round
        self._sees_why = sees_why

    def retry(self, number: int) -> None:
        """Make the round, or finish it where an earlier call was cut off.

        Raises:
            ServiceError: if a service does not answer; calling again resumes.
        """
        if self._sees_why:
            self._attribute()
        standing = self._jobs.rounds()[-1]
        if standing.number < number:
            self._jobs.create_round(number, "retry")
        elif self._submitted(number):
            return
        self._jobs.open_round(number, 0, 0, {})
        self._open_round(self._jobs, self._table, number, self._failed)
        self._submit(number, 1)

    def submit_again(self, number: int, submission: int, *, generation: bool) -> None:
        """New workers, where others have left tasks.

        Raises:
            ServiceError: if a service does not answer; calling again resumes.
        """
        if generation:
            self._jobs.begin_generation()
        self._submit(number, submission)

    def rebuild(self, row: TaskRow, attempt: int) -> None:
        """Make a lost row again, as far as its objects tell; it is not cut off.

        Args:
            row: as it was.
            attempt: the last that has left an object.
        """
        while True:
            try:
                self._table.create(row.round_no, row.sequence, row.where, attempt)
                return self._jobs.begin_generation()
            except ServiceError:
                continue

    def _submit(self, number: int, submission: int) -> None:
        intent = self._jobs.record_intent(number, submission, 1, _ARRAY)
        self._network.call("sbatch", lambda: self._cluster.submit(intent.token), "cluster")
        self._jobs.record_submitted(intent, ["1"])

    def _submitted(self, number: int) -> bool:
        return any(
            each.round_no == number and each.state is SubmitState.SUBMITTED
            for each in self._jobs.submissions()
        )

    def _failed(self) -> list[TaskRow]:
        """By a user who names the classes, each time; but what nobody knows the reason of."""
        return [
            row
            for row in self._rows()
            if row.state in (TaskState.FAILED, TaskState.QUARANTINED)
            and row.error_class != ErrorClass.WORKER_CRASH.value
        ]

    def _attribute(self) -> None:
        for row in self._rows():
            if row.state is TaskState.QUARANTINED:
                self._table.record_cause(row, ErrorClass.OUT_OF_MEMORY, "killed")

    def _rows(self) -> list[TaskRow]:
        return [row for shard in range(self._table.shards) for row in self._table.all_rows(shard)]

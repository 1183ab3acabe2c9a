"""Waits for a job: polls its status, logs what is new, and replaces workers.

It logs progress with rate and time left, workers that died and why, and anomalies. It submits
new workers where none is left and tasks are not done. Airflow's trigger and sensor and
``slurmctl wait`` use it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.anomalies.alert import Alert
from airflow_slurm_provider.coordinator.anomalies.monitor import AnomalyMonitor
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.dead_workers import (
    WorkerFailure,
    attribute_failures,
    find_worker_failures,
)
from airflow_slurm_provider.coordinator.status.eta import eta_of
from airflow_slurm_provider.coordinator.status.logs import first_failures, last_words, read_output
from airflow_slurm_provider.coordinator.status.progress import (
    JobStatus,
    current_arrays,
    read_status,
)
from airflow_slurm_provider.coordinator.submission.credentials import RENEW_AFTER_S, put_credentials
from slurm_worker.errors import ErrorClass, ServiceError, UserError
from slurm_worker.protocol.keys import JobId

#: Number of dead workers whose last lines are logged, per poll.
_TAILS = 3
_TAIL_LINES = 10
#: Ends that neither the work nor the output explains.
_EXPECTED = (ErrorClass.PREEMPTED, ErrorClass.CANCELLED)


class Watcher:
    """Polls a job; one per waiting task.

    A round gets up to `max_resubmissions` arrays of new workers, when its workers are gone and
    tasks are left. `actor` is the name of the waiting user in the audit log.
    """

    def __init__(
        self,
        services: Services,
        job_id: JobId,
        log: Callable[[str], None],
        *,
        max_resubmissions: int = 0,
        actor: str = "slurmctl",
        clock: Callable[[], float] = time.monotonic,
        report_progress: bool = True,
    ) -> None:
        self._services = services
        self._job_id = job_id
        self._log = log
        self._max_resubmissions = max_resubmissions
        self._actor = actor
        self._clock = clock
        self._report_progress = report_progress
        self._alerts: list[Alert] = []
        self._anomalies = AnomalyMonitor(
            services, job_id, log, actor=actor, alert=self._alerts.append
        )
        self._last_line = ""
        self._ended: dict[str, int] = {}
        self._reported: set[str] | None = None
        self._renewed = float("-inf")
        #: Reported workers that died, by error class.
        self.lost: Counter[str] = Counter()

    def poll(self) -> JobStatus:
        """The job's status now.

        Raises:
            ServiceError: if the table or the cluster can't be reached.
            UserError: if there is no such job.
        """
        status = read_status(self._services, self._job_id)
        line = status.progress.line()
        if line != self._last_line and self._report_progress:
            self._last_line = line
            outlook = "" if status.snapshot is None else eta_of(status.snapshot).line()
            self._log("; ".join(part for part in (line, outlook) if part))
        self._report_failures(status)
        self._anomalies.check(status)
        if status.finished and status.progress.failed:
            self._report_item_failures()
        if not status.finished:
            self._renew_credentials()
        if status.workers_gone and self._resubmit(status):
            return replace(status, problem="", workers_gone=False)
        return status

    def take_alerts(self) -> list[Alert]:
        """Alerts that this watcher has raised since the last call."""
        taken = self._alerts.copy()
        self._alerts.clear()
        return taken

    def _renew_credentials(self) -> None:
        if self._clock() < self._renewed + RENEW_AFTER_S:
            return
        try:
            put_credentials(self._services, self._job_id)
        except (ServiceError, UserError) as error:
            self._log(f"the nodes' credentials could not be renewed: {error}")
        else:
            self._renewed = self._clock()

    def _resubmit(self, status: JobStatus) -> bool:
        if self._max_resubmissions < 1:
            return False
        self._log(status.problem)
        most, log, actor = self._max_resubmissions, self._log, self._actor
        workers = api.resubmit(
            self._services, self._job_id, max_resubmits=most, log=log, actor=actor
        )
        return workers is not None

    def _report_failures(self, status: JobStatus) -> None:
        """Log workers that died, when the array's state shows new ones, and at the end."""
        ended = dict(self._ended) if status.array is None else status.array.lost()
        if ended == self._ended and not status.finished:
            return
        try:
            failures = find_worker_failures(self._services, self._job_id)
            if failures and self._reported is None:
                self._reported = self._report_earlier(failures)
        except ServiceError as error:
            self._log(f"it is not known how workers ended: {error}")
            return
        self._ended = ended
        if self._reported is None:
            return  # nobody has died
        if status.finished:
            attribute_failures(self._services, self._job_id)
        new = [failure for failure in failures if failure.worker not in self._reported]
        self._reported.update(failure.worker for failure in new)
        self.lost.update(failure.error_class.value for failure in new)
        shown = [failure for failure in new if failure.error_class not in _EXPECTED][:_TAILS]
        words = ""
        for failure in new:
            self._log(failure.line())
            if failure in shown:
                words = self._report_output(failure, words)

    def _report_earlier(self, failures: list[WorkerFailure]) -> set[str]:
        """Log in one line the workers that had died before the current ones were submitted."""
        standing = current_arrays(self._services.jobs(self._job_id).submissions())
        earlier = [failure for failure in failures if failure.array not in standing]
        classes = Counter(failure.error_class.value for failure in earlier)
        self.lost.update(classes)
        if earlier:
            counts = ", ".join(f"{name} {count:,}" for name, count in classes.most_common())
            self._log(
                f"{len(earlier):,} workers of earlier arrays had died ({counts}); slurmctl status "
                f"{self._job_id} lists them"
            )
        return {failure.worker for failure in earlier}

    def _report_item_failures(self) -> None:
        try:
            failures = first_failures(self._services, self._job_id)
        except ServiceError as error:
            failures = [str(error)]
        if failures:
            self._log(f"the first failures (all: slurmctl logs {self._job_id} --errors):")
        for line in failures:
            self._log(f"  {line}")

    def _report_output(self, failure: WorkerFailure, before: str) -> str:
        """Log a worker's last lines, unless they equal `before`; return them."""
        try:
            output = read_output(self._services, self._job_id, failure.element, _TAIL_LINES)
        except (ServiceError, UserError) as error:
            output = str(error)
        words = last_words(output)
        if words and words == before:
            self._log(f"  {failure.element}: the same")
        else:
            for line in words.splitlines():
                self._log(f"  {failure.element}: {line}")
        return words

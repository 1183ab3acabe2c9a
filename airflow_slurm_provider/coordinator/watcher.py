"""What someone who waits for a job does at each look, and what they say of it.

Progress with its rate and the time that is left, workers that died and why, anomalies, and
new workers where the old ones are gone and tasks are left. Airflow's trigger and sensor and
``slurmctl wait`` look through this.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.anomalies import Alert, Anomalies
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.dead_workers import WorkerFailure, attribute
from airflow_slurm_provider.coordinator.status.eta import outlook_of
from airflow_slurm_provider.coordinator.status.logs import first_failures, last_words, read_output
from airflow_slurm_provider.coordinator.status.progress import JobStatus, standing_arrays
from airflow_slurm_provider.coordinator.submission.credentials import (
    RENEW_AFTER_S,
    put_credentials,
)
from slurm_worker.errors import ErrorClass, ServiceError, UserError
from slurm_worker.protocol.keys import JobId

#: Of so many workers that died the last lines are told, at one look.
_TAILS = 3
_TAIL_LINES = 10
#: Ends that say nothing of the work, and that the output does not explain.
_EXPECTED = (ErrorClass.PREEMPTED, ErrorClass.CANCELLED)


class Watcher:
    """Looks at a job again and again; one per waiting task.

    Args:
        services: the edges.
        job_id: the job.
        say: told each line that is new.
        max_resubmissions: arrays of new workers that a round may get when its workers are
            gone and tasks are left.
        actor: who waits, for the audit trail.
        clock: seconds.
        tell_progress: say how far the job is, too.
    """

    def __init__(
        self,
        services: Services,
        job_id: JobId,
        say: Callable[[str], None],
        *,
        max_resubmissions: int = 0,
        actor: str = "slurmctl",
        clock: Callable[[], float] = time.monotonic,
        tell_progress: bool = True,
    ) -> None:
        self._services = services
        self._job_id = job_id
        self._say = say
        self._max_resubmissions = max_resubmissions
        self._actor = actor
        self._clock = clock
        self._tell_progress = tell_progress
        self._alerts: list[Alert] = []
        self._anomalies = Anomalies(services, job_id, say, actor=actor, alert=self._alerts.append)
        self._said = ""
        self._ended: dict[str, int] = {}
        self._told: set[tuple[str, int]] | None = None
        self._renewed = float("-inf")
        #: Workers that died, by error class, as far as they were told.
        self.lost: Counter[str] = Counter()

    def look(self) -> JobStatus:
        """One look.

        Raises:
            ServiceError: if the table or the cluster can't be reached.
            UserError: if there is no such job.
        """
        seen = api.poll(self._services, self._job_id)
        line = seen.progress.line()
        if line != self._said and self._tell_progress:
            self._said = line
            outlook = "" if seen.snapshot is None else outlook_of(seen.snapshot).line()
            self._say("; ".join(each for each in (line, outlook) if each))
        self._tell_losses(seen)
        self._anomalies.look(seen)
        if seen.finished and seen.progress.failed:
            self._tell_failures()
        if not seen.finished:
            self._renew_credentials()
        if seen.workers_gone and self._resubmit(seen):
            return replace(seen, problem="", workers_gone=False)
        return seen

    def take_alerts(self) -> list[Alert]:
        """Alerts that this watcher's looks have raised since the last call."""
        taken = list(self._alerts)
        self._alerts.clear()
        return taken

    def _renew_credentials(self) -> None:
        if self._clock() < self._renewed + RENEW_AFTER_S:
            return
        try:
            put_credentials(self._services, self._job_id)
        except (ServiceError, UserError) as error:
            self._say(f"the nodes' credentials are not renewed: {error}")
        else:
            self._renewed = self._clock()

    def _resubmit(self, seen: JobStatus) -> bool:
        if self._max_resubmissions < 1:
            return False
        self._say(seen.problem)
        array = api.resubmit(
            self._services,
            self._job_id,
            max_resubmits=self._max_resubmissions,
            log=self._say,
            actor=self._actor,
        )
        return array is not None

    def _tell_losses(self, seen: JobStatus) -> None:
        """Say who died, when the array looks as if somebody new had, and at the end."""
        ended = dict(self._ended) if seen.array is None else seen.array.lost()
        if ended == self._ended and not seen.finished:
            return
        try:
            losses = api.worker_failures(self._services, self._job_id)
            if losses and self._told is None:
                self._told = self._tell_earlier(losses)
        except ServiceError as error:
            self._say(f"how workers ended is not known: {error}")
            return
        self._ended = ended
        if self._told is None:
            return  # nobody has died
        if seen.finished:
            attribute(self._services, self._job_id)
        new = [each for each in losses if each.start not in self._told]
        self._told.update(each.start for each in new)
        self.lost.update(each.error_class.value for each in new)
        shown = [each for each in new if each.error_class not in _EXPECTED][:_TAILS]
        words = ""
        for loss in new:
            self._say(loss.line())
            if loss in shown:
                words = self._tell_output(loss, words)

    def _tell_earlier(self, losses: list[WorkerFailure]) -> set[tuple[str, int]]:
        """Say in a line who had died before the workers that are at work now were submitted."""
        standing = standing_arrays(self._services.jobs(self._job_id).submissions())
        earlier = [each for each in losses if each.array not in standing]
        classes = Counter(each.error_class.value for each in earlier)
        self.lost.update(classes)
        if earlier:
            counts = ", ".join(f"{name} {count:,}" for name, count in classes.most_common())
            self._say(
                f"of earlier arrays {len(earlier):,} workers had died ({counts}); slurmctl status "
                f"{self._job_id} names them"
            )
        return {each.start for each in earlier}

    def _tell_failures(self) -> None:
        try:
            failures = first_failures(self._services, self._job_id)
        except ServiceError as error:
            failures = [str(error)]
        if failures:
            self._say(f"the first failures (all: slurmctl logs {self._job_id} --errors):")
        for line in failures:
            self._say(f"  {line}")

    def _tell_output(self, loss: WorkerFailure, before: str) -> str:
        """Say what a worker wrote last, unless the one before has written the same; return it."""
        try:
            output = read_output(self._services, self._job_id, loss.element, _TAIL_LINES)
        except (ServiceError, UserError) as error:
            output = str(error)
        words = last_words(output)
        if words and words == before:
            self._say(f"  {loss.element}: the same")
        else:
            for line in words.splitlines():
                self._say(f"  {loss.element}: {line}")
        return words

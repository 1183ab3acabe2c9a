"""One round of chaos on the development stack: a disturbed job must give the right result.

A job of items whose outcome is known runs on the stack's Slurm with short leases. A user submits,
pauses, resumes, retries and publishes it by commands that are killed and repeated. Their requests
and those of the workers go through proxies that spoil some, and SSH breaks in the middle of
replies. Meanwhile workers are killed, frozen, requeued and cancelled, disks are full, and daemons
of Slurm die. In Airflow a task waits for the job while its scheduler and triggerer die. Then the
dataset, the counts and the audit are checked. All choices come from the seed; what they meet
depends on the machine's timing.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from airflow_slurm_provider.cli.app import ExitCode
from airflow_slurm_provider.coordinator.services import Services, open_services
from airflow_slurm_provider.coordinator.spec.site import load_site
from airflow_slurm_provider.coordinator.status.progress import Progress, read_progress
from airflow_slurm_provider.coordinator.submission import control
from slurm_worker.errors import ServiceError
from slurm_worker.protocol.keys import JobId
from tests.chaos.checks import (
    attempts_over_one,
    audit_problems,
    leases_lost,
    problems,
    read_manifest,
    task_rows,
)
from tests.chaos.faults.daemons import Daemons
from tests.chaos.faults.disks import Disks, mounted_disks
from tests.chaos.faults.disturber import Disturber
from tests.chaos.faults.proxy import Faults
from tests.chaos.faults.ssh import Cuts
from tests.chaos.faults.tally import Tally
from tests.chaos.faults.workers import workers_of
from tests.chaos.job import RETRY_ROUNDS, TTL_S, Job, proxied_site
from tests.chaos.queue_watch import Ghosts, QueueWatch, live_arrays
from tests.chaos.report import Report
from tests.chaos.sizes import Size
from tests.chaos.user import User, UserGaveUpError, Verb
from tests.chaos.waiting import Waiting
from tests.stack.airflow_api import AirflowApi, AirflowApiError
from tests.stack.process import wait_until
from tests.stack.settings import ROOT, Settings
from tests.stack.stack import remembered_settings
from tests.stack.state_folder import state_folder

_POLL_S = 1.0
_PATIENCE_S = 8.0
#: Without a new task that is done for so long, the user does something. A lease ends sooner.
_STILL_S = 30.0
_END_S = 90.0
#: Airflow takes a minute to see that a task's process died with the scheduler.
_RESUMES_S = 240.0


class ChaosError(Exception):
    """The job did not come to its end in time, or the round could not be carried out."""


class Round:
    """One round, which leaves nothing behind, also where a check fails.

    Args:
        services: the stack's, with no proxy before them.
        settings: the stack's.
        environment: the stack's variables.
        size: of the round.
        seed: of all choices.
        folder: for the input, the site file and the log of the faults.
        say: called with a line for each event.
    """

    def __init__(
        self,
        services: Services,
        settings: Settings,
        environment: Mapping[str, str],
        size: Size,
        seed: int,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._services, self._settings, self._environment = services, settings, environment
        self._size, self._folder, self._tell = size, folder, say
        self._rng = random.Random(seed)
        self._began = time.monotonic()
        self._few_since: float | None = None
        self._done, self._still_since = 0, self._began
        #: Seconds from the first submit to each pause.
        self._pauses = sorted(self._rng.uniform(*size.window_s) for _ in range(size.pauses))
        self._job_id = JobId(f"chaos-{seed}-{uuid.uuid4().hex[:8]}")
        self._cure = Path("/tmp") / f"cure-{self._job_id}"
        self._keys = [f"item-{number:06d}" for number in range(size.items)]
        self._tally = Tally(folder / "faults.jsonl")
        bits = self._rng.getrandbits
        self._faults = Faults(bits(32), size.rate, size.budget, folder / "faults.jsonl")
        self._cuts = Cuts(bits(32), size.cut_rate, size.cut_budget, self._tally)
        self._waiting = Waiting(AirflowApi.of_stack(environment))
        site = {**environment, "SLURMCTL_CONFIG": str(folder / "site.yaml")}
        self._user = User(site, self._fork(), self._tally, self._say)
        self._daemons = Daemons(settings, environment, self._fork(), self._say)
        self._ghosts = Ghosts(self._job_id)
        self._report = Report(seed, self._job_id, commands=self._user.ended)

    def run(self) -> Report:
        """Run the round, and check its result.

        Raises:
            ChaosError, StackError: if the stack can't be left as it was found.
        """
        with ExitStack() as stack:
            disks = stack.enter_context(mounted_disks(self._settings, self._fork(), self._say))
            stack.callback(lambda: self._cure.unlink(missing_ok=True))
            stack.callback(self._end)
            stack.callback(self._user.close)
            stack.callback(self._waiting.close)
            disturber = self._disturber(disks)
            stack.callback(disturber.close)
            site = stack.enter_context(proxied_site(self._settings, self._faults, self._cuts))
            (self._folder / "site.yaml").write_text(site)
            watch = QueueWatch(self._job_id)
            stack.callback(watch.close)
            job = Job(self._job_id, self._keys, self._size, self._cure, disks.setup)
            ended = self._lives(disturber, job.write(self._folder))
            disturber.close()
            watch.close()
            self._report.problems += [*self._user.problems, *sorted(watch.seen)]
            if ended:
                self._leave_nothing()
        self._count()
        if ended:
            self._check()
        return self._report

    def _lives(self, disturber: Disturber, config: Path) -> bool:
        """Whether the job came to its end; if not, the reason is a problem of the report."""
        try:
            self._live(disturber, config)
        except (ChaosError, UserGaveUpError, ServiceError, LookupError, AirflowApiError) as error:
            self._report.problems.append(str(error))
            return False
        return True

    def _live(self, disturber: Disturber, config: Path) -> None:
        """The life of the job: submitted, published, retried, published again."""
        if not self._size.retries:
            self._cure.touch()
        self._command(Verb.SUBMIT, config)
        disturber.plan(self._size.plan, *self._size.window_s)
        disturber.start()
        self._wait_for_round(disturber, config)
        self._publish_among_zombies(disturber)
        if not self._size.retries:
            return
        self._cure.touch()
        self._command(Verb.RETRY, self._job_id)
        disturber.plan(self._size.retry_plan, *self._size.retry_window_s)
        for _ in range(RETRY_ROUNDS):
            self._wait_for_round(disturber, config)
            # A task may have failed on a full disk three times: that is a round of its own.
            if self._user.run(Verb.RETRY, self._job_id)["round"] is None:
                break
        self._publish_among_zombies(disturber)
        if disturber.left:
            self._say(f"the job was quicker than {', '.join(disturber.left)}")

    def _fork(self) -> random.Random:
        return random.Random(self._rng.getrandbits(32))

    def _say(self, text: str) -> None:
        self._tell(f"{time.monotonic() - self._began:6.1f} s  {text}")

    def _disturber(self, disks: Disks) -> Disturber:
        return Disturber(
            self._job_id,
            self._daemons,
            disks,
            2 * TTL_S,
            self._fork(),
            self._tally,
            self._say,
            lambda: self._waiting.deferred,
        )

    def _command(self, verb: Verb, *arguments: str | Path, **options: Any) -> dict[str, Any]:
        kills = self._size.kills.get(verb, 0)
        return self._user.run(verb, *arguments, kills=kills, **options)

    def _wait_for_round(self, disturber: Disturber, config: Path) -> None:
        """Control the job until every task has ended; Airflow must have seen it, too."""
        if self._size.airflow:
            self._waiting.begin(self._job_id)
        began = self._still_since = time.monotonic()
        while not (state := self._progress(disturber)).complete:
            passed = time.monotonic() - began
            if passed > self._size.deadline_s:
                raise ChaosError(
                    f"job {self._job_id} is not complete after {passed:.0f} s: tasks "
                    f"{state.tasks}; {len(workers_of(self._job_id))} workers are left"
                )
            if self._pauses and passed > self._pauses[0]:
                self._pauses.pop(0)
                self._pause_and_resume()
            self._replace_workers(state, config)
            time.sleep(_POLL_S)
        self._say(f"complete; {len(workers_of(self._job_id))} workers are still there")
        if self._size.airflow and (problem := self._waiting.result(_RESUMES_S)):
            self._report.problems.append(f"Airflow: {problem}")

    def _progress(self, disturber: Disturber) -> Progress:
        if disturber.failure is not None:
            raise ChaosError(f"no more disturbances: {disturber.failure}") from disturber.failure
        return read_progress(self._services, self._job_id)

    def _pause_and_resume(self) -> None:
        self._command(Verb.PAUSE, self._job_id)
        self._say("paused")
        time.sleep(self._rng.uniform(1.0, 5.0))
        self._command(Verb.RESUME, self._job_id)
        self._say("resumed")

    def _replace_workers(self, state: Progress, config: Path) -> None:
        """What a user does who sees few workers, or no progress: asks for more."""
        running = self._ghosts.look()
        now = time.monotonic()
        done = state.tasks.get("done", 0)
        if done != self._done:
            self._done, self._still_since = done, now
        enough = self._size.workers // 2
        few = running is not None and running < enough
        self._few_since = (self._few_since or now) if few else None
        # Just after a submit, all of them still wait.
        waits = self._few_since is None or now - self._few_since < _PATIENCE_S
        if (waits and now - self._still_since < _STILL_S) or running is None:
            return
        self._few_since, self._still_since = None, now
        if self._report.submits >= self._size.submits:
            return
        self._report.submits += 1
        self._say(f"{running} workers run, {done} tasks are done: the user asks for more")
        if running or self._rng.random() < 0.5:
            add = ("--add", str(self._size.workers))
            # There may be nothing left to do for more of them.
            self._command(Verb.WORKERS, self._job_id, *add, also=(ExitCode.USER_ERROR,))
        else:
            self._user.run(Verb.SUBMIT, config)

    def _publish_among_zombies(self, disturber: Disturber) -> None:
        """Publish at once, wake the frozen workers, and publish again: nothing may have changed."""
        self._command(Verb.AGGREGATE, self._job_id)
        first = read_manifest(self._services, self._job_id)
        disturber.thaw_all()
        wait_until(lambda: not workers_of(self._job_id), TTL_S, _POLL_S)
        self._user.run(Verb.AGGREGATE, self._job_id)
        second = read_manifest(self._services, self._job_id)
        if (first["files"], first["errors"]) != (second["files"], second["errors"]):
            self._report.problems.append("the dataset changed after it was published")
        self._say(f"published {len(second['files'])} files")

    def _leave_nothing(self) -> None:
        """Cancel as a user; after that, nothing of the job waits, and soon nothing runs."""
        self._command(Verb.CANCEL, self._job_id)
        left = live_arrays(self._job_id)
        if left is None or left:
            self._report.problems.append(f"after the cancel, Slurm has {left or 'no answer'}")
        if not wait_until(lambda: not workers_of(self._job_id), _END_S, _POLL_S):
            self._report.problems.append(f"workers still run: {workers_of(self._job_id)}")

    def _end(self) -> None:
        """Leave nothing of the job in Slurm, however the round went."""
        if not self._services.jobs(self._job_id).find():
            return
        control.cancel(self._services, self._job_id, actor="chaos")
        if not wait_until(lambda: not workers_of(self._job_id), _END_S, _POLL_S):
            raise ChaosError(f"workers did not end: {workers_of(self._job_id)}")

    def _count(self) -> None:
        """Fill the report's figures."""
        report = self._report
        report.seconds = time.monotonic() - self._began
        report.requests = self._faults.requests
        report.faults = self._tally.counts + self._faults.counts
        if self._services.jobs(self._job_id).find() is None:
            return
        rows = task_rows(self._services, self._job_id)
        submissions = self._services.jobs(self._job_id).submissions()
        report.arrays = sum(len(each.slurm_job_ids) for each in submissions)
        report.further_attempts, report.leases_lost = attempts_over_one(rows), leases_lost(rows)

    def _check(self) -> None:
        """Check the promises."""
        report, done = self._report, self._user.ended
        report.problems += problems(self._services, self._job_id, self._keys)
        said = {"published": done["aggregate 0"], "cancelled": done["cancel 0"]}
        report.problems += audit_problems(self._services, self._job_id, said)
        if report.faults.total() < self._size.least_faults:
            report.problems.append(
                f"only {report.faults.total()} faults were injected, {self._size.least_faults} "
                "are wanted: the round proves little"
            )


def run_round(
    size: Size, seed: int, folder: Path, environment: Mapping[str, str], say: Callable[[str], None]
) -> Report:
    """Run a round on the stack that is up.

    Raises:
        ChaosError, StackError: if the stack can't be disturbed, or can't be left as it was found.
    """
    settings = remembered_settings(state_folder(ROOT))
    if settings is None:
        raise ChaosError("the stack is not up (make stack-up)")
    services = open_services(load_site(environment["SLURMCTL_CONFIG"]))
    try:
        if services.site.cluster.transport != "ssh":
            raise ChaosError("chaos needs the stack with Slurm, as root (STACK=slurm)")
        return Round(services, settings, environment, size, seed, folder, say).run()
    finally:
        services.close()

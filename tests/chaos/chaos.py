"""One round of chaos on the development stack: a disturbed job must give the right result.

A job of items whose outcome is known runs on the stack's Slurm with short leases, its
workers behind proxies that spoil requests. Meanwhile workers are killed, frozen, requeued
and cancelled, and a node daemon dies. When no workers are left, the job is submitted again,
as a user would. Then the dataset, the counts and the audit are checked, with nothing in
between. All choices come from the seed; what they meet depends on the machine's timing.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.services import Services, open_services
from airflow_slurm_provider.coordinator.spec.job_spec import Config, load_config
from airflow_slurm_provider.coordinator.spec.site import load_site
from airflow_slurm_provider.coordinator.status.arrays import arrays_of
from airflow_slurm_provider.coordinator.status.progress import read_progress
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.slurm.array_state import ArrayKey, named
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.protocol.keys import JobId
from tests.chaos.checks import attempts_over_one, problems, read_manifest, task_rows
from tests.chaos.disturb import Disturbance, Disturber, make_schedule, workers_of
from tests.chaos.proxy import Faults, Upstream, listening_proxy
from tests.stack.settings import ROOT, Settings
from tests.stack.stack import remembered_settings
from tests.stack.state_folder import state_folder

HANDLER = Path(__file__).with_name("handler")
TTL_S, HEARTBEAT_S, MARGIN_S = 12.0, 3.0, 2.0
#: Losses are the round's own doing here, so they must not look like a task that kills workers.
MAX_LOST = 1000
_POLL_S = 1.0
_FEW_WORKERS = 2
_PATIENCE_S = 5.0


class ChaosError(Exception):
    """The round could not be carried out; this says nothing about the job's correctness."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large a round is.

    Args:
        items: in the job.
        bundle: items of a task.
        workers: of each submission; the stack has room for eight.
        item_s: seconds that an item takes.
        plan: disturbances.
        window_s: (first, last): when they happen, in seconds after the submit.
        rate: share of the workers' requests that is spoiled.
        budget: of spoiled requests.
        least_faults: with fewer than these, disturbances included, the round proves nothing.
        submits: at most.
        deadline_s: from the submit to the last task.
    """

    items: int
    bundle: int
    workers: int
    item_s: float
    plan: Mapping[Disturbance, int]
    window_s: tuple[float, float]
    rate: float
    budget: int
    least_faults: int
    submits: int
    deadline_s: float


FULL = Size(
    items=20_000,
    bundle=100,
    workers=8,
    item_s=0.03,
    plan={
        Disturbance.KILL: 6,
        Disturbance.FREEZE: 3,
        Disturbance.REQUEUE: 2,
        Disturbance.CANCEL: 2,
        Disturbance.SLURMD: 1,
    },
    window_s=(6.0, 75.0),
    rate=0.05,
    budget=200,
    least_faults=50,
    submits=8,
    deadline_s=420.0,
)

SHORT = Size(
    items=4_000,
    bundle=100,
    workers=6,
    item_s=0.03,
    plan={
        Disturbance.KILL: 2,
        Disturbance.FREEZE: 1,
        Disturbance.REQUEUE: 1,
        Disturbance.CANCEL: 1,
        Disturbance.SLURMD: 1,
    },
    window_s=(4.0, 18.0),
    rate=0.10,
    budget=80,
    least_faults=20,
    submits=5,
    deadline_s=150.0,
)


@dataclass
class Report:
    """The result of a round."""

    seed: int
    job_id: str
    faults: Counter[str] = field(default_factory=Counter)
    disturbances: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    submits: int = 0
    further_attempts: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def injected(self) -> int:
        """Faults and disturbances."""
        return self.faults.total() + self.disturbances.total()

    def lines(self) -> list[str]:
        """The figures, as they are printed."""
        result = "FAILED" if self.problems else "passed"
        return [
            f"seed {self.seed}: {result} in {self.seconds:.0f} s; {self.injected} faults",
            f"  {self.faults.total()} of {self.requests:,} requests: {_counts(self.faults)}",
            f"  {self.disturbances.total()} disturbances: {_counts(self.disturbances)}",
            f"  {self.submits} submits; attempts after a task's first: {self.further_attempts}",
            *(f"  PROBLEM: {problem}" for problem in self.problems),
        ]


class Round:
    """One round; a context manager makes sure that it leaves nothing behind.

    Args:
        services: the stack's, with no proxy before them.
        settings: the stack's.
        size: of the round.
        seed: of all choices.
        folder: for the input and the log of the faults.
        say: called with a line for each event.
    """

    def __init__(
        self,
        services: Services,
        settings: Settings,
        size: Size,
        seed: int,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._services = services
        self._size = size
        self._began = time.monotonic()
        self._tell = say
        self._few_since: float | None = None
        self._folder = folder
        rng = random.Random(seed)
        self._job_id = JobId(f"chaos-{seed}-{uuid.uuid4().hex[:8]}")
        self._keys = [f"item-{number:06d}" for number in range(size.items)]
        self._faults = Faults(rng.getrandbits(32), size.rate, size.budget, folder / "faults.jsonl")
        self._disturber = Disturber(
            settings,
            self._job_id,
            2 * TTL_S,
            random.Random(rng.getrandbits(32)),
            self._say,
            make_schedule(rng, dict(size.plan), *size.window_s),
        )
        self._report = Report(seed, self._job_id, self._faults.counts, self._disturber.counts)

    def run(self) -> Report:
        """Run the round, and check its result.

        Raises:
            ChaosError: if it is not complete in time.
        """
        config = self._write_config()
        with ExitStack() as stack:
            stack.callback(self._cancel)
            stack.callback(self._disturber.close)
            behind_proxies = stack.enter_context(self._proxied())
            self._submit(behind_proxies, config)
            self._disturb_until_complete(behind_proxies, config)
            self._publish_among_zombies()
        self._report.seconds = time.monotonic() - self._began
        self._report.requests = self._faults.requests
        self._check()
        return self._report

    def _say(self, text: str) -> None:
        self._tell(f"{time.monotonic() - self._began:6.1f} s  {text}")

    @contextmanager
    def _proxied(self) -> Iterator[Services]:
        """Services that tell workers to use the proxies, and use none themselves."""
        site = self._services.site
        s3, dynamodb = site.aws.s3_endpoint_url, site.aws.dynamodb_endpoint_url
        if s3 is None or dynamodb is None:
            raise ChaosError("the site names no endpoints: chaos runs on the development stack")
        with (
            listening_proxy(Upstream.S3, s3, self._faults) as s3_proxy,
            listening_proxy(Upstream.DYNAMODB, dynamodb, self._faults) as dynamodb_proxy,
        ):
            aws = site.aws.model_copy(
                update={"s3_endpoint_url": s3_proxy, "dynamodb_endpoint_url": dynamodb_proxy}
            )
            yield replace(self._services, site=site.model_copy(update={"aws": aws}))

    def _write_config(self) -> Config:
        lines = (json.dumps({"key": key}) + "\n" for key in self._keys)
        (self._folder / "items.jsonl").write_text("".join(lines))
        document: dict[str, Any] = {
            "job_id": self._job_id,
            "input": {"path": str(self._folder / "items.jsonl"), "key": "key"},
            "handler": {
                "entry": "digest:handle",
                "code": str(HANDLER),
                "params": {"seconds": self._size.item_s},
            },
            "bundle": self._size.bundle,
            "workers": self._size.workers,
            "lease": {
                "ttl": TTL_S,
                "heartbeat": HEARTBEAT_S,
                "margin": MARGIN_S,
                "max_lost": MAX_LOST,
            },
            "slurm": {"time": "00:15:00", "mem": "400M"},
        }
        return load_config(document)

    def _submit(self, behind_proxies: Services, config: Config) -> None:
        submitted = api.submit(behind_proxies, config, log=lambda _: None, actor="chaos")
        if not submitted.reattached:
            self._report.submits += 1
            self._say(f"submitted {named(submitted.slurm_job_ids)} of {submitted.workers} workers")

    def _disturb_until_complete(self, behind_proxies: Services, config: Config) -> None:
        deadline = time.monotonic() + self._size.deadline_s
        while not (state := read_progress(self._services, self._job_id)).complete:
            if time.monotonic() > deadline:
                raise ChaosError(
                    f"job {self._job_id} is not complete after {self._size.deadline_s:.0f} s: "
                    f"tasks {state.tasks}; {len(workers_of(self._job_id))} workers are left"
                )
            self._disturber.step()
            if self._has_few_workers() and self._report.submits < self._size.submits:
                # What a user does who sees it: ends the rest and submits again.
                self._say("few workers are left: cancel, and submit again")
                self._cancel()
                self._submit(behind_proxies, config)
            time.sleep(_POLL_S)
        self._say(f"complete; {len(workers_of(self._job_id))} workers are still there")

    def _has_few_workers(self) -> bool:
        """Whether it has been so for a while: just after a submit, all of them still wait.

        While somebody is frozen, nobody submits: cancelling would wake it within its lease.
        """
        if self._disturber.frozen:
            return False
        running = self._elements().count(ElementState.RUNNING)
        now = time.monotonic()
        if running > _FEW_WORKERS:
            self._few_since = None
        elif self._few_since is None:
            self._few_since = now
        return self._few_since is not None and now - self._few_since > _PATIENCE_S

    def _elements(self) -> list[ElementState]:
        """The elements that run or may still, as Slurm says; a requeued one waits two minutes."""
        return [
            element.state
            for each in self._arrays()
            for element in self._services.slurm.array(each).elements.values()
            if not element.state.terminal
        ]

    def _arrays(self) -> list[ArrayKey]:
        submissions = self._services.jobs(self._job_id).submissions()
        return arrays_of(self._services, self._job_id, submissions)

    def _cancel(self) -> None:
        """End the job's arrays and wait until Slurm knows it."""
        self._few_since = None
        self._disturber.thaw_all()
        cancelled = control.cancel(self._services, self._job_id, actor="chaos")
        deadline = time.monotonic() + 60.0
        while (left := self._elements()) or workers_of(self._job_id):
            if time.monotonic() > deadline:
                raise ChaosError(f"arrays {cancelled} did not end in 60 s: {left}")
            time.sleep(_POLL_S)

    def _publish_among_zombies(self) -> None:
        """Publish at once, wake who is frozen, and publish again: nothing may have changed."""
        api.aggregate(self._services, self._job_id, log=lambda _: None, actor="chaos")
        first = read_manifest(self._services, self._job_id)
        self._disturber.close()
        deadline = time.monotonic() + 3 * TTL_S
        while workers_of(self._job_id) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        api.aggregate(self._services, self._job_id, log=lambda _: None, actor="chaos")
        second = read_manifest(self._services, self._job_id)
        if (first["files"], first["errors"]) != (second["files"], second["errors"]):
            self._report.problems.append("the dataset changed after it was published")

    def _check(self) -> None:
        report = self._report
        report.problems += problems(self._services, self._job_id, self._keys)
        report.further_attempts = attempts_over_one(task_rows(self._services, self._job_id))
        if report.injected < self._size.least_faults:
            report.problems.append(
                f"only {report.injected} faults were injected, {self._size.least_faults} are "
                "wanted: the round proves little"
            )


def run_round(
    size: Size, seed: int, folder: Path, environment: Mapping[str, str], say: Callable[[str], None]
) -> Report:
    """Run a round on the stack that is up.

    Raises:
        ChaosError: if the stack is none that can be disturbed, or the job is not done in time.
    """
    settings = remembered_settings(state_folder(ROOT))
    if settings is None:
        raise ChaosError("the stack is not up (make stack-up)")
    services = open_services(load_site(environment["SLURMCTL_CONFIG"]))
    try:
        if services.site.cluster.transport != "ssh":
            raise ChaosError("chaos needs the stack with Slurm, as root (STACK=slurm)")
        return Round(services, settings, size, seed, folder, say).run()
    finally:
        services.close()


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))

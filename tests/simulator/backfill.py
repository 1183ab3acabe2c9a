"""One seed of a whole backfill: the user's commands, the cluster, the workers, and the promises.

The commands are the coordinator's own (`coordinator/api.py` and its neighbours), the workers are
the nodes' own code. What they share loses, repeats and delays requests.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.maintenance import gc
from airflow_slurm_provider.coordinator.maintenance.repair.job import repair
from airflow_slurm_provider.coordinator.planning import planner
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config, parse_config
from airflow_slurm_provider.coordinator.status.progress import read_status
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.coordinator.watcher import Watcher
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.errors import ErrorClass, ServiceError, UserError
from slurm_worker.protocol.keys import TaskState, job_pk, shard_count, shard_of, task_pk
from slurm_worker.protocol.ports import Row
from tests.simulator import handler as handlers
from tests.simulator.account import drawn_variables
from tests.simulator.chance import alarms, scratch, seeded
from tests.simulator.checks.cancels import Cancels
from tests.simulator.checks.moments import Moments
from tests.simulator.checks.others import checked_failures, checked_status
from tests.simulator.checks.plans import Plans
from tests.simulator.checks.publications import Publications
from tests.simulator.cluster import BREAKDOWNS, ArrayElement, ClusterRules, Controller
from tests.simulator.coverage import Coverage
from tests.simulator.fleet import Fleet
from tests.simulator.handler import SimHandler
from tests.simulator.login_node import LoginNode, SlurmFaults
from tests.simulator.promises import Promises
from tests.simulator.publishers import KEPT_S, use_for_weeks
from tests.simulator.reduction import WHOLE, Reduction
from tests.simulator.run import Report, Violation, check_rules
from tests.simulator.schedule import Host, Overrun, Schedule
from tests.simulator.seen import Seen
from tests.simulator.stores.credentials import FASTER
from tests.simulator.stores.outages import Aim, FaultRates, Outage
from tests.simulator.user import Command, Stuck, User, Verb
from tests.simulator.world import BUCKET, INPUT, JOB, World

_EPOCH = 1_700_000_000.0
_UNTIL_S = 60_000.0
#: A job without faults has ended after this time; otherwise its user submits it again.
_PATIENCE_S = 900.0
#: Task rows between two writes of a round's cursor: few, as its tasks are.
_CURSOR_EVERY = 40
#: An item that takes its workers down is given up after some of them.
_MOST_SUBMISSIONS = 15
#: Otherwise few are enough once nothing goes wrong: for the plan, and after the handler's stop.
_FEW_SUBMISSIONS = 4
#: Times of a lease, and those that a user tries until `submit` accepts them.
_TIMES = {"ttl": 20.0, "heartbeat": 5.0, "margin": 3.0}
_TRIED_TIMES = {"ttl": (4.0, 10.0, 20.0, 60.0), "heartbeat": (1.0, 2.0, 5.0), "margin": (3.0, 15.0)}
_LONG_STALL_S = 3600.0
#: Garbage is so old, while the job runs.
_GC_AGE_S = 600.0
#: What does not answer in an outage; see `Outage.what`.
_AWAY = ("", "table", "table write", "table write", "store", "store put")
#: The most that clocks are wrong: as NTP leaves them, and without NTP.
_SKEWS_S = (0.0, 2.0, 2.0, 2.0, 2.0, 120.0)
#: A rate is changed at most once in ten seconds, by any clock.
_SKEWS_OF_LIMIT_S = (0.0, 2.0, 30.0, 120.0)
_FAULTS = ("lost_request", "lost_reply")
#: Requests with which an outage begins: what a process knows of them afterwards matters.
_AIMED = (
    *("claim", "claim", "claim", "steal", "heartbeat", "heartbeat", "release", "complete"),
    *("decide", "fail", "crashed", "abandon", "reopen", "record cause", "cursor", "put"),
    *("round adopt", "round cursor", "round open", "job open", "submitted", "submit refused"),
)
#: Requests that seldom meet what others have written meanwhile: they are delayed.
_DELAYED = (
    *("quarantine", "intend again", "submitted", "submit refused", "record cause", "reopen"),
    *("round adopt", "round cursor", "decide", "job stop", "steal", "steal", "cursor", "fail"),
)
#: Those of a rate limit.
_DELAYED_OF_LIMIT = ("push tat", "cut rate", "cut rate", "raise rate", "return quota")
_POLL_S = 60.0
_INVALID = "sbatch: error: Batch job submission failed: Invalid partition name specified"


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a run."""

    items: int
    bundle: int | None
    workers: int
    item_s: float  #: mean seconds of a call
    retries: int
    limited: bool  #: the handler's calls share a rate limit
    batches: bool  #: the handler takes several items
    timeout_s: float  #: of an item; 0 for none
    stall_s: float  #: without any progress

    @classmethod
    def drawn(cls, rng: random.Random) -> Shape:
        """A random shape."""
        many = rng.random() < 0.15
        return cls(
            items=rng.randint(100, 250) if many else rng.randint(6, 40),
            bundle=1 if many else rng.choice((None, 2, 3, 5, 8)),
            workers=200 if many and rng.random() < 0.3 else rng.randint(1, 4),
            item_s=0.05 if many else rng.choice((0.3, 1.5)),
            retries=rng.choice((0, 1, 1, 2)),
            limited=rng.random() < 0.2,
            batches=rng.random() < 0.15,
            timeout_s=rng.choice((0.0, 0.0, 25.0)),
            stall_s=rng.choice((_LONG_STALL_S, 60.0)),
        )

    @property
    def bounded(self) -> bool:
        """Whether a call that does not return is ended."""
        return self.stall_s < _LONG_STALL_S or (self.timeout_s > 0 and not self.batches)


@dataclass
class Backfill:
    """One run; `seed` decides everything."""

    seed: int
    reduced: Reduction = WHOLE

    def __post_init__(self) -> None:
        self.rng = rng = random.Random(self.seed)
        self.calm = rng.random() < 0.1
        self.shape = self._reduced(Shape.drawn(rng))
        schedule = Schedule(_UNTIL_S)
        self.seen = seen = Seen(self.seed, self.reduced.keep, lambda: schedule.now)
        self._moments = self._someone = 0
        #: Until when things happen.
        self.until = 0.0 if self.calm else rng.uniform(60, 900)
        rules = ClusterRules(
            slots=rng.choice((1, 2, 64)),
            accounting=rng.random() < 0.8,
            account_s=rng.choice((1.0, 5.0, 60.0)),
            purge_s=rng.choice((20.0, 300.0)),
            max_array_size=rng.choice((2, 1001)),
            submit_limit=rng.choice((3, 10_000)),
        )
        controller = Controller(schedule, random.Random(rng.random()), rules)
        slurm = 0.0 if self.calm else rng.choice((0.0, 0.1))
        node = LoginNode(
            schedule,
            random.Random(rng.random()),
            controller,
            SlurmFaults(slurm, slurm, self.until),
            seen,
        )
        conditional = rng.random() < 0.85
        self.world = World(
            schedule,
            seen,
            controller,
            node,
            self._rates(),
            conditional_put=conditional,
            conditional_replace=conditional and rng.random() < 0.9,
            skew_s=rng.choice(_SKEWS_OF_LIMIT_S if self.shape.limited else _SKEWS_S),
            role=not self.calm and rng.random() < 0.25,
        )
        shape = self.shape
        self.world.rows.say = seen.say
        self.world.endless = shape.bounded and not self.calm
        self.handler = SimHandler(
            self.world,
            random.Random(rng.random()),
            shape.items,
            shape.item_s,
            calm=self.calm,
            bounded=shape.bounded,
        )
        self._damaged: dict[str, bytes] = {}
        self._waiter: Command | None = None
        self._next_waiter = 0.0
        self.promises = Promises(self.world, self.handler)
        self.user = User(self.world, careful=self.calm)
        self.fleet = Fleet(self.world)
        self.world.rows.on_broken = lambda rule: schedule.fail(Violation(rule))
        self.cancels = Cancels(self.world)
        self.publications = Publications(self.world, self.world.objects, _GC_AGE_S)
        self.plans = Plans(self.world)
        self.moments = Moments(self.world)
        controller.launch, self.fleet.on_start = self.fleet.launch, self.cancels.worker_started
        node.variables = drawn_variables(rng)
        self.times = self._drawn_times() if rng.random() < 0.3 else _TIMES

    def run(self) -> Report:
        """Run it and check every promise.

        Raises:
            Violation: naming the promise.
        """
        world, schedule = self.world, self.world.schedule
        try:
            with (
                scratch() as world.scratch,
                seeded(self.seed, lambda: _EPOCH + schedule.now),
                alarms(schedule),
                mock.patch.object(planner, "CURSOR_EVERY", _CURSOR_EVERY),
                handlers.registered(self.seed, self.handler),
            ):
                schedule.run(Host("main"), self._main)
        except Overrun as error:
            raise Violation(f"the job does not end: {error}; {world.states()}") from error
        except Stuck as error:
            raise Violation(f"{error}; {world.states()}") from error
        finally:
            check_rules(world.rows)
        return Report(
            self.seed,
            schedule.now,
            world.seen.requests,
            world.seen.faults,
            sum(row.lost for row in world.task_rows()),
            Coverage.of(world.rows, self.seen),
        )

    # --- what happens -----------------------------------------------------------

    def _drawn_times(self) -> dict[str, float]:
        """Times of a lease that `submit` accepts, as a user finds them by trying."""
        while True:
            times = {name: self.rng.choice(values) for name, values in _TRIED_TIMES.items()}
            with suppress(UserError):
                self.config(times)
                return times

    def _reduced(self, shape: Shape) -> Shape:
        return replace(
            shape,
            items=min(shape.items, self.reduced.items),
            workers=min(shape.workers, self.reduced.workers),
            retries=min(shape.retries, self.reduced.retries),
        )

    def _rates(self) -> FaultRates:
        worst = 0.0 if self.calm else self.rng.choice((0.0, 0.01, 0.03))
        request, reply, throttled, slow, late = (self.rng.uniform(0, worst) for _ in range(5))
        return FaultRates(
            request,
            reply,
            throttled,
            slow,
            late,
            self.until,
            stale_read_s=0.0 if self.calm else self.rng.choice((0.0, 2.0)),
            stale_list_s=0.0 if self.calm else self.rng.choice((0.0, 0.0, 2.0, 30.0)),
            conflict=0.0 if self.calm else self.rng.choice((0.0, 0.8)),
        )

    def _main(self) -> None:
        world = self.world
        lines = [f'{{"id": "k{n}", "n": {n}}}\n' for n in range(self.shape.items)]
        world.objects.put(INPUT, "".join(lines).encode())
        chance = self.seen.rng_of("main")
        if chance.random() < 0.1 and self.seen.happens("input", "an earlier release"):
            # An earlier release created a job before it had read the input.
            spec = self.config().spec
            world.jobs.create(spec.identity(), "", shard_count(spec.max_workers))
            self.user.begin("submit", _submit(self), disturbed=True)
        if not self.calm and chance.random() < 0.25:
            self._submit_too_early(chance)
        self._until_done("submit", _submit(self))
        self._wait()
        self._restore()
        for _ in range(self.shape.retries):
            self._until_done("retry", self._some_retry(chance))
            self._wait()
            self._restore()
        self.handler.corrected = True
        self._retry_the_rest()
        if not self.calm:
            for name, verb in (("gc", _collect), ("aggregate", _aggregate), ("repair", _repair)):
                if chance.random() < 0.3 and self.seen.happens(f"{name} beside", "aggregate"):
                    self.user.begin(name, verb, disturbed=True)
        self._until_done("aggregate", _aggregate)
        self.user.wait()
        self._wait()
        self._retry_the_rest()
        self._until_done("aggregate", _aggregate)
        # Elements that waited for a node find nothing to do, and end.
        while any(array.alive for array in world.controller.arrays):
            world.schedule.sleep(10.0)
        # Late attempts may still be under way; what they do must change nothing.
        world.schedule.sleep(3 * self.times["ttl"])
        if not self.calm and chance.random() < 0.25:
            self.user.wait()
            self.publications.kept_s = KEPT_S
            use_for_weeks(world, self.user, chance)
            self._until_done("aggregate", _aggregate)
            self.user.wait()
        self.user.begin("check", self.promises.check, disturbed=False)

    def _submit_too_early(self, rng: random.Random) -> None:
        """Submits of an input that is not right yet; the user does not wait for their refusal."""
        objects = self.world.objects
        right = objects.objects[INPUT]
        for number in range(rng.randint(1, 2)):
            if self.seen.happens(f"early {number}", "wrong input"):
                # Its last item has the key of its first.
                objects.put(INPUT, right + right.partition(b"\n")[0] + b"\n")
                self.user.begin("submit", _submit(self), disturbed=rng.random() < 0.7)
                self.world.schedule.sleep(rng.choice((0.1, 1.0, 30.0)) * rng.random())
        objects.put(INPUT, right)

    def _some_retry(self, rng: random.Random) -> Verb:
        """A retry of all classes, of some, by the policy, or of some items."""
        classes = [error_class.value for error_class in ErrorClass]
        kind = rng.choice(("all", "all", "some", "policy", "items"))
        if kind == "policy":
            classes = []
        elif kind == "some":
            classes = sorted(rng.sample(classes, len(classes) // 2))
        keys = [f"k{number}" for number in range(self.shape.items)]
        only = rng.sample(keys, len(keys) // 2) if kind == "items" else None
        return lambda services: api.retry(services, JOB, classes, only=only, log=_quiet)

    def _retry_the_rest(self) -> None:
        """Until no task has failed as a whole: a dataset needs every task."""
        while any(row.state is not TaskState.DONE for row in self.world.task_rows()):
            self._restore()
            self._until_done("retry", _retry)
            self._wait()

    def _until_done(self, name: str, verb: Verb) -> None:
        self.user.until_done(name, verb, self._do_what_the_message_says)

    def _correct(self) -> None:
        """Correct the options that Slurm refuses, and restore damaged objects."""
        self.world.controller.refusal = ""
        self._restore()

    def _do_what_the_message_says(self) -> None:
        """Resume a job that is halted; wait for one that runs; retry what failed as a whole."""
        self._correct()
        job = self.world.job()
        if job is None:
            return
        if job.stop or job.paused:
            self.user.until_done("resume", _resume, self._correct)
        if self.world.rows.tasks:
            self._wait()
        if self.handler.corrected:
            # A call that slept has put tasks into another round.
            self._retry_the_rest()

    def _wait(self) -> None:
        """Until every task has ended; meanwhile things happen, and the user does something."""
        world = self.world
        since, submissions = world.schedule.now, 0
        while not world.complete():
            self._keep_waiting()
            self._moments += 1
            rng = self.seen.rng_of(f"moment {self._moments}")
            world.schedule.sleep(rng.expovariate(1 / 6.0))
            if world.schedule.now < self.until:
                self._trouble(rng)
            since = max(since, self.until, *(outage.end for outage in world.outages))
            if world.schedule.now > since + _PATIENCE_S and not self.user.running:
                submissions += 1
                most = _MOST_SUBMISSIONS if self.handler.ends_elements else _FEW_SUBMISSIONS
                if submissions > most:
                    raise Violation(f"the job does not end: {world.states()}")
                self.user.until_done("resume", _resume, self._correct)
                self.user.until_done("submit", _submit(self), self._correct)
                since = world.schedule.now

    def _keep_waiting(self) -> None:
        """Somebody waits for the job: that process renews the nodes' credentials."""
        now = self.world.schedule.now
        ended = self._waiter is None or self._waiter.ended.is_set()
        if self.world.role and ended and now >= self._next_waiter:
            self._next_waiter = now + _POLL_S
            rng = self.seen.rng_of(f"waiter {self._moments}")
            disturbed = rng.random() < 0.3 and now < self.until
            self._waiter = self.user.begin("wait", self._watch, disturbed=disturbed, waits=True)

    def _watch(self, services: Services) -> None:
        schedule = self.world.schedule
        watcher = Watcher(
            services,
            JOB,
            self.log,
            max_resubmissions=2,
            clock=lambda: schedule.now * FASTER,
        )
        while not watcher.poll().finished:
            schedule.sleep(_POLL_S)

    def _trouble(self, rng: random.Random) -> None:
        world = self.world
        kind = rng.choices(list(_TROUBLES), list(_TROUBLES.values()))[0]
        running = world.controller.running()
        if kind in _OF_ELEMENTS and not running:
            return
        if not self.seen.happens(f"moment {self._moments}", kind):
            return
        if kind in _COMMANDS:
            self.user.begin(kind, _COMMANDS[kind](self), disturbed=rng.random() < 0.5)
            if kind == "pause" and rng.random() < 0.5:
                # Two users at once; the first who paused it stays.
                self.user.begin(kind, _COMMANDS[kind](self), disturbed=False)
        elif kind in _OF_SERVICES:
            _OF_SERVICES[kind](self, rng)
        elif kind in BREAKDOWNS:
            world.controller.break_down(kind, rng)
        elif kind == "login node":
            world.node.restart()
        elif kind == "refusals":
            world.controller.refusal = _INVALID if not world.controller.refusal else ""
        elif kind == "damage":
            self._damage(rng)
        else:
            self._hurt(kind, rng.choice(running), rng)

    def _hurt(self, kind: str, element: ArrayElement, rng: random.Random) -> None:
        world = self.world
        if kind == "node fails":
            requeued = rng.random() < 0.7
            world.controller.kill(element, ElementState.NODE_FAIL, requeued=requeued)
        elif kind == "out of memory":
            world.controller.kill(element, ElementState.OUT_OF_MEMORY)
        elif kind == "preempted":
            world.controller.requeue(element)
        elif kind == "suspended":
            for host in element.hosts:
                world.schedule.pause(host, rng.uniform(1, 4 * self.times["ttl"]))
        elif kind == "process dies":
            world.schedule.kill(element.hosts[-1])
        elif kind == "all suspended":
            for other in world.controller.running():
                for host in other.hosts:
                    world.schedule.pause(host, 3 * self.times["ttl"])

    def begin_outage(self, rng: random.Random) -> None:
        """A service does not answer for a while: requests, or replies, are lost."""
        now = self.world.schedule.now
        fault = rng.choice(_FAULTS)
        # In a short one a request is given up, and what follows from that gets an answer.
        length_s = rng.choice((rng.uniform(20, 45), rng.uniform(30, 400)))
        outage = Outage(now, now + length_s, rng.choice(_AWAY), fault)
        self.world.say(f"outage: {outage}")
        self.world.outages.append(outage)

    def throttle_partition(self, rng: random.Random) -> None:
        """One partition of the table is hot: requests to it are refused for a while."""
        world = self.world
        job = world.job()
        shards = [] if job is None else [task_pk(JOB, shard) for shard in range(job.shards)]
        hot = rng.choice([job_pk(JOB), *rng.sample(shards, min(2, len(shards)))])
        what = f"{rng.choice(('table', 'table write'))} {hot}"
        now = world.schedule.now
        world.outages.append(Outage(now, now + rng.uniform(10, 200), what, "throttled"))
        world.say(f"throttled: {what}")

    def aim(self, rng: random.Random) -> None:
        """An outage of the table begins right when a process makes a certain request."""
        what, fault = rng.choice(("table", "table write")), rng.choice(_FAULTS)
        alone = rng.random() < 0.7
        aims = [Aim(rng.choice(_AIMED), rng.uniform(15, 60), what, fault, alone)]
        if rng.random() < 0.3:
            # A worker is cut off, and the one that takes its task, too: the first one comes back.
            ttl_s = self.times["ttl"]
            aims = [
                Aim(
                    "heartbeat", rng.uniform(1.5, 2.5) * ttl_s, "table", "lost_request", alone=True
                ),
                Aim("steal", 2 * ttl_s, "table", "lost_reply", alone=True),
            ]
        self.world.say(f"{aims}")
        self.world.outages.aims.extend(aims)

    def delay(self, rng: random.Random) -> None:
        """A certain request of a process arrives late; the same one of others comes first."""
        of_limit = self.shape.limited and rng.random() < 0.5
        name = rng.choice(_DELAYED_OF_LIMIT if of_limit else _DELAYED)
        length_s = rng.uniform(3, 18)
        self.world.outages.aims.append(
            Aim(name, length_s, "table write", "lost_request", alone=True)
        )

    def lose_rows(self, rng: random.Random) -> None:
        """The rows of a worker's tasks are lost while it stands still; the user repairs the job.

        The new rows know only the attempts that have left objects. So they may give an attempt's
        number again, to another owner. Then the worker dies, and its supervisor reports.
        """
        world = self.world
        leased = [row for row in world.task_rows() if row.state is TaskState.LEASED]
        owners = sorted({row.owner for row in leased if row.owner in world.owners})
        job = world.job()
        if not owners or job is None or not world.conditional_put:
            return
        owner = rng.choice(owners)
        host, lost = world.owners[owner], {row.sk for row in leased if row.owner == owner}
        world.schedule.pause(host, 6 * self.times["ttl"])
        for row in leased:
            if row.owner == owner:
                world.rows.delete(task_pk(JOB, shard_of(row.sequence, job.shards)), row.sk)
                world.seen.attempts.pop(row.sk, None)

        def leased_again(name: str, _before: Row, after: Row) -> None:
            if name == "claim" and after["sk"] in lost:
                lost.discard(str(after["sk"]))
                if not lost:
                    world.schedule.kill(host)

        world.rows.watchers.append(leased_again)
        self._until_done("repair", _repair_whole)

    def _damage(self, rng: random.Random) -> None:
        """An object of the input is damaged; the user restores it before a retry."""
        objects = self.world.objects.objects
        segments = sorted(key for key in objects if "/segment-" in key)
        if segments:
            key = rng.choice(segments)
            self._damaged.setdefault(key, objects[key])
            objects[key] = b"?" + objects[key][1:]

    def _restore(self) -> None:
        self.world.objects.objects.update(self._damaged)
        self._damaged.clear()

    # --- the user's commands ----------------------------------------------------

    def config(self, times: Mapping[str, float] | None = None) -> Config:
        """The user's YAML, with these times of a lease instead of the run's."""
        shape = self.shape
        entry = handlers.handle_batch.__name__ if shape.batches else handlers.handle.__name__
        raw: dict[str, Any] = {
            "job_id": JOB,
            "input": {"path": f"s3://{BUCKET}/{INPUT}", "key": "id"},
            "handler": {"entry": f"{handlers.__name__}:{entry}", "params": {"run": self.seed}},
            "workers": shape.workers,
            "lease": {**(times or self.times), "max_lost": 4, "stall": shape.stall_s},
            "worker": {"tries": 2, "backoff": 0.1, "checkpoint": 6},
        }
        if shape.timeout_s:
            raw["worker"]["item_timeout"] = shape.timeout_s
        if shape.bundle is not None:
            raw["bundle"] = shape.bundle
        if shape.limited:
            raw["limits"] = {"api": {"rate": 20, "quota_per_day": 100_000}}
        return parse_config(raw, raw)

    def someone(self) -> str:
        """A user, one of several."""
        self._someone += 1
        return f"user {self._someone}"

    def log(self, line: str) -> None:
        """What a command prints."""
        self.world.say(f"  {line}")


def _submit(run: Backfill) -> Verb:
    return lambda services: api.submit(services, run.config(), log=run.log)


def _retry(services: Services) -> Any:
    classes = [error_class.value for error_class in ErrorClass]
    return api.retry(services, JOB, classes, log=_quiet)


def _aggregate(services: Services) -> Any:
    return api.aggregate(services, JOB, log=_quiet)


def _collect(services: Services) -> Any:
    return gc.collect(services, JOB, older_than_s=_GC_AGE_S, log=_quiet)


def _repair(services: Services) -> Any:
    """Repair a job whose rows are all there, perhaps beside its workers."""
    result = repair(services, JOB, log=_quiet)
    broken = [line for line in result.unrepaired if "is done, but" in line]
    if broken:
        raise Violation(f"repair calls a task broken that is not: {broken[0]}")
    return result


def _repair_whole(services: Services) -> Any:
    """Repair again where a list was behind."""
    result = _repair(services)
    if result.unrepaired:
        raise ServiceError("; ".join(result.unrepaired))
    return result


def _resume(services: Services) -> Any:
    return control.resume(services, JOB, log=_quiet)


def _resubmit(services: Services) -> Any:
    status = read_status(services, JOB)
    if status.workers_gone:
        return api.resubmit(services, JOB, max_resubmits=100, log=_quiet)
    return None


def _add_workers(services: Services) -> Any:
    return control.add_workers(services, JOB, 1, log=_quiet)


def _quiet(_line: str) -> None:
    pass


_COMMANDS: dict[str, Callable[[Backfill], Verb]] = {
    "pause": lambda run: partial(control.pause, job_id=JOB, actor=run.someone()),
    "resume": lambda _run: _resume,
    "submit": _submit,
    "add workers": lambda _run: _add_workers,
    "cancel": lambda run: run.cancels.cancel,
    "repair": lambda _run: _repair,
    "status": lambda _run: checked_status,
    "dead workers": lambda _run: checked_failures,
    "resubmit": lambda _run: _resubmit,
}
#: What happens to running elements, and how likely it is.
_OF_ELEMENTS = {
    "node fails": 3,
    "out of memory": 1,
    "preempted": 2,
    "suspended": 3,
    "process dies": 3,
    "all suspended": 1,
}
_TROUBLES = {
    **_OF_ELEMENTS,
    "outage": 3,
    "hot partition": 1,
    "aimed outage": 3,
    "delayed request": 3,
    "row lost": 1,
    "slurmctld": 1,
    "slurmdbd": 1,
    "slurmctld's state": 0.5,
    "scancel": 1,
    "login node": 1,
    "refusals": 1,
    "damage": 1,
    "pause": 1,
    "resume": 2,
    "submit": 2,
    "add workers": 1,
    "cancel": 1,
    "repair": 1,
    "status": 2,
    "dead workers": 0.5,
    "resubmit": 2,
}
#: Troubles of the services.
_OF_SERVICES: dict[str, Callable[[Backfill, random.Random], None]] = {
    "outage": lambda run, rng: run.begin_outage(rng),
    "hot partition": lambda run, rng: run.throttle_partition(rng),
    "aimed outage": lambda run, rng: run.aim(rng),
    "delayed request": lambda run, rng: run.delay(rng),
    "row lost": lambda run, rng: run.lose_rows(rng),
}

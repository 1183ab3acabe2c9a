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
from airflow_slurm_provider.coordinator.planning import planner
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config, parse_config
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.coordinator.watcher import Watcher
from slurm_worker.errors import ErrorClass, UserError
from slurm_worker.protocol.keys import TaskState, shard_count
from tests.simulator import handler as handlers
from tests.simulator.checks.cancels import Cancels
from tests.simulator.checks.moments import Moments
from tests.simulator.checks.others import checked_failures, checked_status
from tests.simulator.checks.plans import Plans
from tests.simulator.checks.publications import Publications
from tests.simulator.checks.rows import Violation, check_rules
from tests.simulator.commands.publishers import KEPT_S, use_for_weeks
from tests.simulator.commands.user import Command, Stuck, User, Verb
from tests.simulator.commands.verbs import (
    GC_AGE_S,
    add_workers,
    aggregate,
    collect,
    quiet,
    repair_job,
    repair_whole,
    resubmit,
    resume,
    retry,
)
from tests.simulator.coverage import Coverage
from tests.simulator.engine.chance import alarms, scratch, seeded
from tests.simulator.engine.reduction import WHOLE, Reduction
from tests.simulator.engine.schedule import Host, Overrun, Schedule
from tests.simulator.engine.seen import Seen
from tests.simulator.fleet import Fleet
from tests.simulator.handler import SimHandler
from tests.simulator.promises import Promises
from tests.simulator.run import Report
from tests.simulator.shape import Shape
from tests.simulator.slurm.account import drawn_variables
from tests.simulator.slurm.cluster import ClusterRules, Controller
from tests.simulator.slurm.login_node import LoginNode, SlurmFaults
from tests.simulator.stores.credentials import FASTER
from tests.simulator.stores.outages import FaultRates
from tests.simulator.troubles import OF_ELEMENTS, TROUBLES, Troubles
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
#: The most that clocks are wrong: as NTP leaves them, and without NTP.
_SKEWS_S = (0.0, 2.0, 2.0, 2.0, 2.0, 120.0)
#: A rate is changed at most once in ten seconds, by any clock.
_SKEWS_OF_LIMIT_S = (0.0, 2.0, 30.0, 120.0)
_POLL_S = 60.0


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
            SlurmFaults(slurm, slurm, self.until, full=0.0 if self.calm else 0.4),
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
        self._waiter: Command | None = None
        self._next_waiter = 0.0
        self.promises = Promises(self.world, self.handler)
        self.user = User(self.world, careful=self.calm)
        self.fleet = Fleet(self.world)
        self.world.rows.on_broken = lambda rule: schedule.fail(Violation(rule))
        self.cancels = Cancels(self.world)
        self.publications = Publications(self.world, self.world.objects, GC_AGE_S)
        self.plans = Plans(self.world)
        self.moments = Moments(self.world)
        controller.launch, self.fleet.on_start = self.fleet.launch, self.cancels.worker_started
        node.variables = drawn_variables(rng)
        self.times = self._drawn_times() if rng.random() < 0.3 else _TIMES
        self.troubles = Troubles(
            self.world,
            self.times["ttl"],
            limited=shape.limited,
            repair=lambda: self._until_done("repair", repair_whole),
        )

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
        self.troubles.restore()
        for _ in range(self.shape.retries):
            self._until_done("retry", self._some_retry(chance))
            self._wait()
            self.troubles.restore()
        self.handler.corrected = True
        self._retry_the_rest()
        if not self.calm:
            for name, verb in (("gc", collect), ("aggregate", aggregate), ("repair", repair_job)):
                if chance.random() < 0.3 and self.seen.happens(f"{name} beside", "aggregate"):
                    self.user.begin(name, verb, disturbed=True)
        self._until_done("aggregate", aggregate)
        self.user.wait()
        self._wait()
        self._retry_the_rest()
        self._until_done("aggregate", aggregate)
        # Elements that waited for a node find nothing to do, and end.
        while any(array.alive for array in world.controller.arrays):
            world.schedule.sleep(10.0)
        # Late attempts may still be under way; what they do must change nothing.
        world.schedule.sleep(3 * self.times["ttl"])
        if not self.calm and chance.random() < 0.25:
            self.user.wait()
            self.publications.kept_s = KEPT_S
            use_for_weeks(world, self.user, chance)
            self._until_done("aggregate", aggregate)
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
        return lambda services: api.retry(services, JOB, classes, only=only, log=quiet)

    def _retry_the_rest(self) -> None:
        """Until no task has failed as a whole: a dataset needs every task."""
        while any(row.state is not TaskState.DONE for row in self.world.task_rows()):
            self.troubles.restore()
            self._until_done("retry", retry)
            self._wait()

    def _until_done(self, name: str, verb: Verb) -> None:
        self.user.until_done(name, verb, self._do_what_the_message_says)

    def _correct(self) -> None:
        """Correct the options that Slurm refuses, and restore damaged objects."""
        self.world.controller.refusal = ""
        self.troubles.restore()

    def _do_what_the_message_says(self) -> None:
        """Resume a job that is halted; wait for one that runs; retry what failed as a whole."""
        self._correct()
        job = self.world.job()
        if job is None:
            return
        if job.stop or job.paused:
            self.user.until_done("resume", resume, self._correct)
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
                self.user.until_done("resume", resume, self._correct)
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
        kind = rng.choices(list(TROUBLES), list(TROUBLES.values()))[0]
        if kind in OF_ELEMENTS and not self.world.controller.running():
            return
        if not self.seen.happens(f"moment {self._moments}", kind):
            return
        if kind in _COMMANDS:
            self.user.begin(kind, _COMMANDS[kind](self), disturbed=rng.random() < 0.5)
            if kind == "pause" and rng.random() < 0.5:
                # Two users at once; the first who paused it stays.
                self.user.begin(kind, _COMMANDS[kind](self), disturbed=False)
        else:
            self.troubles.happen(kind, rng)

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


_COMMANDS: dict[str, Callable[[Backfill], Verb]] = {
    "pause": lambda run: partial(control.pause, job_id=JOB, actor=run.someone()),
    "resume": lambda _run: resume,
    "submit": _submit,
    "add workers": lambda _run: add_workers,
    "cancel": lambda run: run.cancels.cancel,
    "repair": lambda _run: repair_job,
    "status": lambda _run: checked_status,
    "dead workers": lambda _run: checked_failures,
    "resubmit": lambda _run: resubmit,
}

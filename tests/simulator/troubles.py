"""What goes wrong in a whole backfill: with elements, services, Slurm and the input."""

from __future__ import annotations

import random
from collections.abc import Callable

from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.protocol.keys import TaskState, job_pk, shard_of, task_pk
from slurm_worker.protocol.ports import Row
from tests.simulator.slurm.cluster import BREAKDOWNS, ArrayElement
from tests.simulator.stores.outages import Aim, Outage
from tests.simulator.world import JOB, World

#: What does not answer in an outage; see `Outage.what`.
_AWAY = ("", "table", "table write", "table write", "store", "store put")
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
_INVALID = "sbatch: error: Batch job submission failed: Invalid partition name specified"
#: What happens to running elements, and how likely it is.
OF_ELEMENTS = {
    "node fails": 3,
    "out of memory": 1,
    "preempted": 2,
    "suspended": 3,
    "process dies": 3,
    "all suspended": 1,
}
#: All that happens, commands of the user among it, and how likely it is.
TROUBLES = {
    **OF_ELEMENTS,
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


class Troubles:
    """What happens to the world of a backfill while its job runs.

    Args:
        world: what is hurt.
        ttl_s: of a lease.
        limited: whether the handler's calls share a rate limit.
        repair: the user repairs the job until it is whole.
    """

    def __init__(
        self, world: World, ttl_s: float, *, limited: bool, repair: Callable[[], None]
    ) -> None:
        self._world = world
        self._ttl_s = ttl_s
        self._limited = limited
        self._repair = repair
        self._damaged: dict[str, bytes] = {}

    def happen(self, kind: str, rng: random.Random) -> None:
        """One of `TROUBLES` that is not a command of the user."""
        controller = self._world.controller
        if kind in _OF_SERVICES:
            _OF_SERVICES[kind](self, rng)
        elif kind in BREAKDOWNS:
            controller.break_down(kind, rng)
        elif kind == "login node":
            self._world.node.restart()
        elif kind == "refusals":
            controller.refusal = _INVALID if not controller.refusal else ""
        else:
            self._hurt(kind, rng.choice(controller.running()), rng)

    def _hurt(self, kind: str, element: ArrayElement, rng: random.Random) -> None:
        world = self._world
        if kind == "node fails":
            requeued = rng.random() < 0.7
            world.controller.kill(element, ElementState.NODE_FAIL, requeued=requeued)
        elif kind == "out of memory":
            world.controller.kill(element, ElementState.OUT_OF_MEMORY)
        elif kind == "preempted":
            world.controller.requeue(element)
        elif kind == "suspended":
            for host in element.hosts:
                world.schedule.pause(host, rng.uniform(1, 4 * self._ttl_s))
        elif kind == "process dies":
            world.schedule.kill(element.hosts[-1])
        elif kind == "all suspended":
            for other in world.controller.running():
                for host in other.hosts:
                    world.schedule.pause(host, 3 * self._ttl_s)

    def begin_outage(self, rng: random.Random) -> None:
        """A service does not answer for a while: requests, or replies, are lost."""
        now = self._world.schedule.now
        fault = rng.choice(_FAULTS)
        # In a short one a request is given up, and what follows from that gets an answer.
        length_s = rng.choice((rng.uniform(20, 45), rng.uniform(30, 400)))
        outage = Outage(now, now + length_s, rng.choice(_AWAY), fault)
        self._world.say(f"outage: {outage}")
        self._world.outages.append(outage)

    def throttle_partition(self, rng: random.Random) -> None:
        """One partition of the table is hot: requests to it are refused for a while."""
        world = self._world
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
            ttl_s = self._ttl_s
            aims = [
                Aim(
                    "heartbeat", rng.uniform(1.5, 2.5) * ttl_s, "table", "lost_request", alone=True
                ),
                Aim("steal", 2 * ttl_s, "table", "lost_reply", alone=True),
            ]
        self._world.say(f"{aims}")
        self._world.outages.aims.extend(aims)

    def delay(self, rng: random.Random) -> None:
        """A certain request of a process arrives late; the same one of others comes first."""
        of_limit = self._limited and rng.random() < 0.5
        name = rng.choice(_DELAYED_OF_LIMIT if of_limit else _DELAYED)
        length_s = rng.uniform(3, 18)
        self._world.outages.aims.append(
            Aim(name, length_s, "table write", "lost_request", alone=True)
        )

    def lose_rows(self, rng: random.Random) -> None:
        """The rows of a worker's tasks are lost while it stands still; the user repairs the job.

        The new rows know only the attempts that have left objects. So they may give an attempt's
        number again, to another owner. Then the worker dies, and its supervisor reports.
        """
        world = self._world
        leased = [row for row in world.task_rows() if row.state is TaskState.LEASED]
        owners = sorted({row.owner for row in leased if row.owner in world.owners})
        job = world.job()
        if not owners or job is None or not world.conditional_put:
            return
        owner = rng.choice(owners)
        host, lost = world.owners[owner], {row.sk for row in leased if row.owner == owner}
        world.schedule.pause(host, 6 * self._ttl_s)
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
        self._repair()

    def damage(self, rng: random.Random) -> None:
        """An object of the input is damaged; the user restores it before a retry."""
        objects = self._world.objects.objects
        segments = sorted(key for key in objects if "/segment-" in key)
        if segments:
            key = rng.choice(segments)
            self._damaged.setdefault(key, objects[key])
            objects[key] = b"?" + objects[key][1:]

    def restore(self) -> None:
        """The user restores what was damaged."""
        self._world.objects.objects.update(self._damaged)
        self._damaged.clear()


#: Troubles of the services.
_OF_SERVICES: dict[str, Callable[[Troubles, random.Random], None]] = {
    "outage": Troubles.begin_outage,
    "hot partition": Troubles.throttle_partition,
    "aimed outage": Troubles.aim,
    "delayed request": Troubles.delay,
    "row lost": Troubles.lose_rows,
    "damage": Troubles.damage,
}

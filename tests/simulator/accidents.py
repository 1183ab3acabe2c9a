"""What happens to a worker so that others lose, or give up, what it still works on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.keys import TaskState
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.ports import Row
from slurm_worker.protocol.slices import Slice
from slurm_worker.protocol.tasks import TaskRow
from slurm_worker.testing import MemoryObjects
from tests.simulator.engine.schedule import Host, Schedule
from tests.simulator.engine.seen import Seen
from tests.simulator.stores.outages import Aim, Outage, Outages


@dataclass
class Accidents:
    """The accidents of one run.

    Args:
        schedule: the simulated time.
        seen: gives each accident random numbers of its own.
        objects: the bucket.
        paths: the job's keys.
        lease: the times of a lease.
        task_rows: gives the task rows as they are.
    """

    schedule: Schedule
    seen: Seen
    objects: MemoryObjects
    paths: JobPaths
    lease: LeaseConfig
    task_rows: Callable[[], list[TaskRow]]
    #: When single workers reach no service.
    cuts: Outages = field(default_factory=Outages)
    #: When the last late commit arrives.
    late_until: float = 0.0
    #: Workers whose next commit is late.
    _late: set[Host] = field(default_factory=set)
    #: Workers that stand still in a commit of a task that others can't read.
    _committing: set[Host] = field(default_factory=set)
    #: Sort keys of tasks whose holders stand still.
    _poisoned: set[str] = field(default_factory=set)
    #: Sort keys of tasks whose next holder loses them, too; and these holders' predecessors.
    _twice: set[str] = field(default_factory=set)
    _thieves: dict[str, str] = field(default_factory=dict)

    def cut_off(self, live: set[Host], rng: random.Random) -> None:
        """A holder reaches no service, or gets no reply, until its task was stolen; see `leased`.

        With replies lost, it gives its task back, and does not know it.
        """
        rows = self.task_rows()
        if any(row.state is TaskState.READY for row in rows):
            return  # Nobody steals before these are leased.
        holders = {row.owner for row in rows if row.state is TaskState.LEASED}
        for name in sorted(each.name for each in live if each.name in holders)[-1:]:
            now, fault = (
                self.schedule.now,
                rng.choice(("lost_request", "lost_request", "lost_reply")),
            )
            self.cuts.append(Outage(now, now + 4 * self.lease.ttl_s, "", fault, name))
            if rng.random() < 0.4:
                self._twice.update(row.sk for row in rows if row.owner == name)

    def commit_late(self, host: Host) -> None:
        """The next commit of a process is late; see `before_put`."""
        self._late.add(host)

    def before_put(self, host: Host, key: str) -> None:
        """The commit of a worker stays under way for long, and others give its task up.

        They can't read it, or lose it again and again.
        """
        if host not in self._late or not key.endswith(".done"):
            return
        self._late.discard(host)
        rows = [row for row in self.task_rows() if self.paths.done(row.task) == key]
        if not rows:
            return  # It was lost.
        row, rng = rows[0], self.seen.rng_of(f"{host.name} commits late")
        damaged = rng.random() < 0.5
        away_s = rng.uniform(*((4, 8) if damaged else (14, 22))) * self.lease.ttl_s
        self.schedule.pause(host, away_s)
        self.late_until = max(self.late_until, self.schedule.now + away_s)
        if damaged:
            self._committing.add(host)
            self._damage(row.where)
        else:
            self._poisoned.add(row.sk)
            # Two of the others give it up.
            self._aim("quarantine", rng.uniform(3, 18), "table", "lost_request")

    def retried(self) -> None:
        """A retry has read which tasks have failed: one of them is committed right now."""
        for host in self._committing:
            self.schedule.resume(host)
        self._committing.clear()

    def leased(self, name: str, before: Row, after: Row) -> None:
        """What becomes of the new holder of a task, and of the former one."""
        if name not in ("claim", "steal"):
            return
        host, now = self.schedule.current.host, self.schedule.now
        if after["sk"] in self._poisoned and now < self.late_until:
            self.schedule.pause(host, 2 * self.lease.ttl_s)
        if name == "steal":
            self._stolen(host, str(after["sk"]), str(before["owner"]), str(after["owner"]))

    def _stolen(self, host: Host, sk: str, former: str, owner: str) -> None:
        """A holder that was cut off comes back while the new one works, or the one after it."""
        now, ttl_s = self.schedule.now, self.lease.ttl_s
        if sk in self._twice and any(cut.host == former and now < cut.end for cut in self.cuts):
            self._twice.discard(sk)
            self._thieves[owner] = former
            self.schedule.pause(host, 2 * ttl_s)
            return
        away = self._thieves.pop(former, former)
        for place, cut in enumerate(self.cuts):
            if cut.host == away and now < cut.end:
                self.cuts[place] = replace(cut, end=now + 1.0)
                self.schedule.pause(host, ttl_s / 2)
                if away != former:
                    # Its loss is excused twice: the first reply is lost.
                    self._aim("excuse loss", ttl_s / 2, "table write", "lost_reply")

    def _damage(self, where: Slice) -> None:
        segment = self.paths.segment(0, where.segment)
        body = bytearray(self.objects.objects[segment])
        body[where.offset] ^= 1
        self.objects.put(segment, bytes(body))

    def _aim(self, name: str, length_s: float, what: str, fault: str) -> None:
        self.cuts.aims.append(Aim(name, length_s, what, fault, alone=True))

"""How large a round of chaos is, and which kinds of faults it must have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.chaos.faults import ssh
from tests.chaos.faults.disturber import Disturbance
from tests.chaos.faults.proxy import Fault, Upstream
from tests.chaos.user import Verb


@dataclass(frozen=True, slots=True)
class Size:
    """How large a round is.

    Args:
        items: in the job.
        bundle: items of a task.
        workers: of each submission; the stack has room for eight.
        item_s: seconds that an item takes.
        plan: disturbances of the first round.
        window_s: (first, last): when they happen, in seconds after the submit.
        retry_plan: disturbances of the retry round.
        retry_window_s: when they happen, in seconds after the retry.
        retries: whether some items fail until they are retried.
        kills: of each command of the user.
        pauses: of the first round, each with a resume.
        airflow: whether a task of Airflow waits for the job.
        rate: share of the requests that is spoiled.
        budget: of spoiled requests.
        cut_rate: share of SSH replies that is cut.
        cut_budget: of cut replies.
        least_faults: with fewer than these, the round proves nothing.
        submits: of new workers at most, in place of those that died.
        deadline_s: of each of the two rounds, from the submit to the last task.
    """

    items: int
    bundle: int
    workers: int
    item_s: float
    plan: Mapping[Disturbance, int]
    window_s: tuple[float, float]
    retry_plan: Mapping[Disturbance, int]
    retry_window_s: tuple[float, float]
    retries: bool
    kills: Mapping[Verb, int]
    pauses: int
    airflow: bool
    rate: float
    budget: int
    cut_rate: float
    cut_budget: int
    least_faults: int
    submits: int
    deadline_s: float

    @property
    def kinds(self) -> list[str]:
        """Every kind of fault that rounds of this size must have, at least once over some seeds."""
        requests = [f"{where.value} {what.value}" for where in Upstream for what in Fault]
        disturbances = [what.value for what in Disturbance if self.plan.get(what)]
        commands = [verb.killed for verb in Verb if self.kills.get(verb)]
        return [*disturbances, *commands, ssh.KIND, *requests]


FULL = Size(
    items=12_000,
    bundle=100,
    workers=8,
    item_s=0.03,
    plan={
        Disturbance.KILL: 5,
        Disturbance.FREEZE: 2,
        Disturbance.REQUEUE: 2,
        Disturbance.CANCEL: 2,
        Disturbance.SCRATCH: 3,
        Disturbance.SLURMD: 1,
        Disturbance.SLURMCTLD: 2,
        Disturbance.SLURMDBD: 2,
        Disturbance.SCHEDULER: 1,
        Disturbance.TRIGGERER: 2,
    },
    window_s=(4.0, 60.0),
    retry_plan={
        Disturbance.KILL: 2,
        Disturbance.FREEZE: 1,
        Disturbance.SCRATCH: 1,
        Disturbance.SLURMCTLD: 1,
        Disturbance.SLURMDBD: 1,
        Disturbance.TRIGGERER: 1,
    },
    retry_window_s=(1.0, 20.0),
    retries=True,
    kills={
        Verb.SUBMIT: 3,
        Verb.PAUSE: 1,
        Verb.RESUME: 2,
        Verb.WORKERS: 1,
        Verb.RETRY: 3,
        Verb.AGGREGATE: 2,
        Verb.CANCEL: 1,
    },
    pauses=1,
    airflow=True,
    rate=0.05,
    budget=200,
    cut_rate=0.03,
    cut_budget=20,
    least_faults=100,
    submits=10,
    deadline_s=400.0,
)

SHORT = Size(
    items=3_000,
    bundle=100,
    workers=6,
    item_s=0.02,
    plan={
        Disturbance.KILL: 2,
        Disturbance.FREEZE: 1,
        Disturbance.REQUEUE: 1,
        Disturbance.CANCEL: 1,
        Disturbance.SCRATCH: 1,
        Disturbance.SLURMD: 1,
        Disturbance.SLURMCTLD: 1,
    },
    window_s=(3.0, 15.0),
    retry_plan={},
    retry_window_s=(0.0, 1.0),
    retries=False,
    kills={Verb.SUBMIT: 1, Verb.AGGREGATE: 1},
    pauses=0,
    airflow=False,
    rate=0.10,
    budget=80,
    cut_rate=0.01,
    cut_budget=3,
    least_faults=20,
    submits=5,
    deadline_s=150.0,
)

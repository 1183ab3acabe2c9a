"""Weeks after a job: users publish its dataset in different layouts, and collect garbage."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from airflow_slurm_provider.coordinator import dataset, spec_store
from airflow_slurm_provider.coordinator.maintenance import gc
from airflow_slurm_provider.coordinator.services import Services
from tests.simulator.commands.user import User, Verb
from tests.simulator.world import JOB, World

#: How old garbage must be in these weeks.
KEPT_S = gc.WEEK_S
_LONGEST_S = 8 * 7 * 86_400.0
_DAY_S = 86_400.0
#: Between the starts of two commands: at once, some requests later, days later.
_PAUSES_S: tuple[Callable[[random.Random], float], ...] = (
    lambda _rng: 0.0,
    lambda rng: rng.expovariate(1 / 0.1),
    lambda rng: rng.uniform(1, 20),
    lambda rng: rng.uniform(0.5, 2) * _DAY_S,
    lambda rng: rng.uniform(7, 9) * _DAY_S,
)
_LAYOUTS: tuple[Mapping[str, Any], ...] = ({}, {"rows_per_file": 5}, {"sort_by": ("n",)})


def use_for_weeks(world: World, user: User, rng: random.Random) -> None:
    """Start commands beside and after each other; wait until all have ended."""
    world.schedule.extend(2 * _LONGEST_S)
    for number in range(rng.randint(4, 9)):
        layout, collects = rng.choice(_LAYOUTS), rng.random() < 0.4
        wait_s, slow = rng.choice(_PAUSES_S)(rng), rng.random() < 0.5
        name = "collect" if collects else "publish"
        if world.seen.happens(f"week's command {number}", name):
            verb = collect if collects else publish_as(layout)
            longest_s = rng.choice((10.0, 10 * _DAY_S))
            user.begin(name, verb, disturbed=slow, longest_s=longest_s)
        world.schedule.sleep(wait_s)
    user.wait()


def collect(services: Services) -> object:
    """``slurmctl gc``, with its own age."""
    return gc.collect(services, JOB, older_than_s=KEPT_S, log=_quiet)


def publish_as(layout: Mapping[str, Any]) -> Verb:
    """``slurmctl aggregate`` by a user whose YAML has another layout."""

    def publish(services: Services) -> object:
        spec = spec_store.read_spec(services, services.jobs(JOB).get())
        dataset.check_complete(services, JOB)
        section = spec.aggregate.model_copy(update=dict(layout))
        return dataset.merge(services, spec.model_copy(update={"aggregate": section}), _quiet)

    return publish


def _quiet(_line: str) -> None:
    pass

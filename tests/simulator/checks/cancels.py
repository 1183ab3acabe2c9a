"""After a cancel that reported success, none of the submissions that it met has workers."""

from __future__ import annotations

from typing import Any

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.slurm.states import ElementState
from tests.simulator.checks.rows import Violation
from tests.simulator.slurm.cluster import Array, ArrayElement
from tests.simulator.world import JOB, World

_WAITS_OR_RUNS = (ElementState.PENDING, ElementState.RUNNING)


class Cancels:
    """The cancels of one run.

    A submission that was intended before a cancel began must have no workers once it has ended.
    A submission that is intended later is a later call's, whether or not the cancel has stopped it.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        #: Tokens of the submissions that a cancel has ended.
        self._ended: set[str] = set()

    def cancel(self, services: Services) -> Any:
        """The command.

        Raises:
            Violation: if it reports success and an array is left.
        """
        begun = self._world.schedule.now
        tokens = {row.token for row in self._world.jobs.submissions()}
        result = control.cancel(services, JOB)
        for array in self._world.controller.arrays:
            if array.foreign or array.forgotten or array.submitted >= begun:
                continue
            left = any(element.state in _WAITS_OR_RUNS for element in array.elements)
            if left and token_of(array) in tokens:
                raise Violation(f"array {array.name} waits or runs after a cancel that succeeded")
        self._ended |= tokens
        return result

    def worker_started(self, element: ArrayElement) -> None:
        """A worker's process begins.

        Raises:
            Violation: if its submission was cancelled.
        """
        if token_of(element.array) in self._ended:
            raise Violation(f"worker {element.name} starts after a cancel that succeeded")


def token_of(array: Array) -> str:
    """What the submission of an array is known by: see `job_rows.job_name`."""
    return array.name.removeprefix(f"{JOB}.").split(".")[1]

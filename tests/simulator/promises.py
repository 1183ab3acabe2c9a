"""What must hold of a backfill, whatever happened: checked while it runs, and at its end."""

from __future__ import annotations

from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.protocol.keys import SubmitState
from tests.simulator.checks.audit import Audit
from tests.simulator.checks.cancels import token_of
from tests.simulator.checks.dataset import check_dataset, read_manifest
from tests.simulator.checks.outcomes import Outcomes, check_ends
from tests.simulator.checks.rounds import Rounds
from tests.simulator.checks.rows import Violation, check_decisions, check_ended
from tests.simulator.checks.status import check_status
from tests.simulator.handler import SimHandler
from tests.simulator.slurm.cluster import Array
from tests.simulator.world import World


class Promises:
    """Checks one run.

    Args:
        world: what is checked.
        handler: what its user's handler does.
    """

    def __init__(self, world: World, handler: SimHandler) -> None:
        self._world = world
        self._handler = handler
        self._rounds, self._audit = Rounds(world), Audit(world)
        world.controller.on_submit = self.array_submitted
        world.controller.on_cancel = self.array_cancelled

    # --- while it runs ----------------------------------------------------------

    def array_submitted(self, array: Array) -> None:
        """Slurm has taken an array.

        Raises:
            Violation: if it must not be.
        """
        if token_of(array) not in {row.token for row in self._world.jobs.submissions()}:
            raise Violation(f"array {array.name} was submitted without an intent")
        arrays = self._world.controller.arrays
        alive = [other for other in arrays if other.alive and not other.forgotten]
        if any(other.name == array.name for other in alive):
            raise Violation(f"two arrays of one submission wait or run: {array.name}")
        if f"--array=0-{len(array.elements) - 1}\n" not in array.script:
            raise Violation(f"{array.name}: {len(array.elements)} is not its script's size")

    def array_cancelled(self, array: Array) -> None:
        """``scancel`` has chosen an array.

        Raises:
            Violation: if it is not ours.
        """
        if array.foreign:
            raise Violation(f"array {array.slurm_job_id}, {array.name} of others, is cancelled")

    def manifest_is_whole(self) -> None:
        """Every file of the published dataset exists.

        Raises:
            Violation: naming a file that does not.
        """
        manifest = read_manifest(self._world)
        for file in manifest["files"] if manifest else ():
            if file["key"] not in self._world.objects.objects:
                raise Violation(f"the manifest names {file['key']}, which does not exist")

    # --- at the end ---------------------------------------------------------------

    def check(self, services: Services) -> None:
        """Check all that must hold at the end; `services` meet no faults.

        Raises:
            Violation: naming the promise.
        """
        world, items = self._world, len(self._handler.behaviours)
        rows = {row.task: row for row in world.task_rows()}
        markers = {marker.task: marker for marker in world.truth.markers()}
        check_decisions(world.seen)
        check_ended(rows, markers)
        outcomes = Outcomes.read(world, markers)
        check_ends(world, self._handler, outcomes, rows)
        self._rounds.check(rows, outcomes)
        self.manifest_is_whole()
        check_dataset(world, outcomes.final(), items)
        check_status(world, services, rows, outcomes, items)
        self._audit.check(rows)
        self._check_submissions()

    def _check_submissions(self) -> None:
        for row in self._world.jobs.submissions():
            if row.state is SubmitState.INTENT and not row.refused and row.slurm_job_ids:
                raise Violation(f"submission {row.label} has arrays and is an intent")
        for array in self._world.controller.arrays:
            if array.alive:
                raise Violation(f"array {array.name} still waits or runs")

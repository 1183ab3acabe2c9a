"""What must hold of a backfill, whatever happened: checked while it runs, and at its end."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections import Counter
from typing import Any

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.status.progress import read_progress
from slurm_worker.protocol.job_store import Marker
from slurm_worker.protocol.keys import SubmitState, TaskId, TaskState
from slurm_worker.protocol.tasks import TaskRow
from tests.simulator.cluster import Array
from tests.simulator.handler import Behaviour, SimHandler
from tests.simulator.run import Violation, check_decisions, check_ended
from tests.simulator.world import JOB, World


class Promises:
    """Checks one run.

    Args:
        world: what is checked.
        handler: what its user's handler does.
    """

    def __init__(self, world: World, handler: SimHandler) -> None:
        self._world = world
        self._handler = handler
        world.controller.on_submit = self.array_submitted

    # --- while it runs ----------------------------------------------------------

    def array_submitted(self, array: Array) -> None:
        """Slurm has taken an array.

        Raises:
            Violation: if it must not be.
        """
        alive = [other for other in self._world.controller.arrays if other.alive]
        if any(other.name == array.name for other in alive):
            raise Violation(f"two arrays of one submission wait or run: {array.name}")

    def manifest_is_whole(self) -> None:
        """Every file of the published dataset exists.

        Raises:
            Violation: naming a file that does not.
        """
        manifest = self._manifest()
        for file in manifest["files"] if manifest else ():
            if file["key"] not in self._world.objects.objects:
                raise Violation(f"the manifest names {file['key']}, which does not exist")

    # --- at the end ---------------------------------------------------------------

    def check(self, services: Services) -> None:
        """Check all that must hold at the end; `services` meet no faults.

        Raises:
            Violation: naming the promise.
        """
        rows = {row.task: row for row in self._world.task_rows()}
        markers = {marker.task: marker for marker in self._world.truth.markers()}
        check_decisions(self._world.seen)
        check_ended(rows, markers)
        self._check_items(rows, markers)
        self._check_dataset()
        self._check_status(services, rows)
        self._check_submissions()

    def _check_items(self, rows: dict[TaskId, TaskRow], markers: dict[TaskId, Marker]) -> None:
        """In each round's parts, each of its items is there once."""
        found: Counter[tuple[int, str]] = Counter()
        for marker in markers.values():
            number = rows[marker.task].round_no
            for part in marker.parts:
                data = self._world.objects.get(part.key)
                if data is None:
                    raise Violation(f"{marker.task}: part {part.key} is not there")
                if hashlib.sha256(data).hexdigest() != part.sha256:
                    raise Violation(f"{marker.task}: part {part.key} is not what was committed")
                for line in gzip.decompress(data).splitlines():
                    found[number, json.loads(line)["_key"]] += 1
        twice = [item for item, count in found.items() if count > 1]
        if twice:
            raise Violation(f"items are twice in the parts of a round: {twice}")

    def _check_dataset(self) -> None:
        """The dataset has each item once, with what a perfect machine could have made of it."""
        import pyarrow.parquet as pq

        manifest = self._manifest()
        if manifest is None:
            raise Violation("no dataset was published")
        self.manifest_is_whole()
        rows: list[dict[str, Any]] = []
        for file in manifest["files"]:
            body = self._world.objects.objects[file["key"]]
            rows += pq.read_table(io.BytesIO(body)).to_pylist()
        keys = Counter(row["_key"] for row in rows)
        twice = [key for key, count in keys.items() if count > 1]
        if twice:
            raise Violation(f"items are twice in the dataset: {twice}")
        for row in rows:
            self._check_row(row)
        lost = {
            f"k{number}"
            for number, behaviour in enumerate(self._handler.behaviours)
            if behaviour is Behaviour.OK
        } - set(keys)
        given_up = self._given_up()
        if lost - given_up:
            raise Violation(f"items are not in the dataset: {sorted(lost - given_up)}")

    def _check_row(self, row: dict[str, Any]) -> None:
        number = int(row["_key"][1:])
        if row.get("square") not in (None, number * number):
            raise Violation(f"the dataset has {row}")

    def _given_up(self) -> set[str]:
        """Items of tasks that failed as a whole."""
        keys: set[str] = set()
        for row in self._world.task_rows():
            if row.state is not TaskState.DONE:
                keys.update(self._world.truth.read_slice(row.round_no, row.where).keys)
        return keys

    def _check_status(self, services: Services, rows: dict[TaskId, TaskRow]) -> None:
        """What `status` shows is what the rows have."""
        progress = read_progress(services, JOB)
        states = Counter(row.state.value for row in rows.values())
        shown = {state: count for state, count in progress.tasks.items() if count}
        if shown != dict(states):
            raise Violation(f"status shows {shown}, the rows have {dict(states)}")

    def _check_submissions(self) -> None:
        for row in self._world.jobs.submissions():
            if row.state is SubmitState.INTENT and not row.refused and row.slurm_job_ids:
                raise Violation(f"submission {row.label} has arrays and is an intent")
        for array in self._world.controller.arrays:
            if array.alive:
                raise Violation(f"array {array.name} still waits or runs")

    def _manifest(self) -> dict[str, Any] | None:
        data = self._world.objects.objects.get(self._world.paths.manifest)
        return None if data is None else json.loads(data)

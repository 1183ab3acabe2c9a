"""A plan that was accepted stays, and nobody deletes what another call has written."""

from __future__ import annotations

from slurm_worker.protocol import keys
from slurm_worker.protocol.ports import Row
from tests.simulator.checks.rows import Violation
from tests.simulator.engine.schedule import Host
from tests.simulator.world import JOB, World


class Plans:
    """Watches the deletions of one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        #: Who has created each of the job's own rows.
        self._authors: dict[str, Host] = {}
        world.rows.watchers.append(self._written)
        world.rows.on_delete = self._row_deleted
        before = world.objects.on_delete

        def deleted(key: str) -> None:
            before(key)
            self._object_deleted(key)

        world.objects.on_delete = deleted

    def _written(self, _name: str, before: Row, after: Row) -> None:
        if not before and after["pk"] == keys.job_pk(JOB):
            self._authors[str(after["sk"])] = self._world.schedule.current.host

    def _row_deleted(self, pk: str, sk: str) -> None:
        author = self._authors.pop(sk, None) if pk == keys.job_pk(JOB) else None
        host = self._world.schedule.current.host
        if author not in (None, host):
            self._fail(f"{host.name} deletes row {sk}, which another call has written")

    def _object_deleted(self, key: str) -> None:
        draft = self._world.paths.draft_in(key)
        if draft is None:
            return
        job = self._world.job()
        plans = {row.number: row.draft for row in self._world.jobs.rounds()}
        if job is not None and job.draft:
            plans[0] = job.draft
        for number, plan in plans.items():
            if plan == draft and key.startswith(self._world.paths.segments(number)):
                self._fail(f"{key} is deleted, and belongs to the plan of round {number}")

    def _fail(self, what: str) -> None:
        self._world.schedule.fail(Violation(what))

"""What must hold at each moment: what a write names exists before the write.

A process may end between any two requests, and only what it has written is there then. So the order
of writes is a promise about every state of the table and the store, checked with each write. None
of these checks waits until an accident happens at the right moment.
"""

from __future__ import annotations

import json

from slurm_worker.protocol import keys
from slurm_worker.protocol.keys import RoundState, TaskId
from slurm_worker.protocol.ports import Row, int_of
from tests.simulator.checks.rows import Violation
from tests.simulator.engine.schedule import Host
from tests.simulator.world import World


class Moments:
    """Watches every write of a run.

    Args:
        world: whose table and store it watches.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._checks = {
            "complete": self._completed,
            "heartbeat": self._checkpointed,
            "release": self._checkpointed,
            "put job": self._named,
            "job adopt": self._named,
            "job config": self._named,
            "put round": self._planned,
            "round adopt": self._planned,
            "round open": self._round_opened,
            "job open": self._job_opened,
            "reopen": self._brought_back,
            "job generation": self._renewed,
        }
        #: By the command that did it, a task that came back where workers may have passed it
        self._late: dict[Host, TaskId] = {}
        world.rows.watchers.append(self._applied)
        world.command_done = self.command_done
        before = world.objects.on_put

        def put(key: str, body: bytes) -> None:
            before(key, body)
            if key.endswith(".done"):
                self._committed(key, body)

        world.objects.on_put = put

    def _applied(self, name: str, _before: Row, after: Row) -> None:
        check = self._checks.get(name)
        if check is not None:
            check(after)

    def _committed(self, key: str, body: bytes) -> None:
        marker = json.loads(body)
        for part in marker["parts"]:
            self._exists(part["key"], f"marker {key}")
        decided = self._winner(TaskId(marker["task"])) == marker["attempt"]
        if not self._world.conditional_put and not decided:
            self._fail(f"marker {key} is published before the table has decided for it")

    def _winner(self, task: TaskId) -> int:
        job, (round_no, sequence) = self._world.job(), keys.parse_task_id(task)
        if job is None:
            return 0
        pk = keys.task_pk(job.job, keys.shard_of(sequence, job.shards))
        return int_of(self._world.rows.get(pk, keys.task_sk(round_no, sequence)) or {}, "winner")

    def _completed(self, row: Row) -> None:
        task = _task_of(row)
        data = self._world.objects.get(self._world.paths.done(task))
        if data is None:
            self._fail(f"{task} is done without a marker")
        elif json.loads(data)["split"]:
            rows = {task.task for task in self._world.task_rows()}
            missing = [half for half in keys.halves(task) or () if half not in rows]
            if missing:
                self._fail(f"{task} is done, and its halves {missing} have no rows")

    def _checkpointed(self, row: Row) -> None:
        reference = str(row.get("checkpoint", ""))
        if reference:
            folder = self._world.paths.checkpoints(_task_of(row))
            self._exists(folder + reference.partition(" ")[0], "a task's row")

    def _named(self, row: Row) -> None:
        """The job's row names its configuration and its plan."""
        if row["config"]:
            self._exists(self._world.paths.config(str(row["config"])), "the job's row")
        self._plan(0, int_of(row, "draft"))

    def _planned(self, row: Row) -> None:
        self._plan(_number_of(row), int_of(row, "draft"))

    def _plan(self, number: int, draft: int) -> None:
        """A plan is complete: its summary, and segments with as many items."""
        if not draft:
            return
        paths, objects = self._world.paths, self._world.objects
        self._exists(paths.draft_summary(number, draft), f"round {number}")
        data = objects.get(paths.draft_summary(number, draft))
        if data is not None and json.loads(data)["items"]:
            self._exists(paths.segment(number, keys.segment_number(draft, 0)), f"round {number}")

    def _round_opened(self, row: Row) -> None:
        number = _number_of(row)
        rows = [task for task in self._world.task_rows() if task.round_no == number]
        planned = sum(task.sequence < keys.MAX_TASKS for task in rows)
        if planned != int_of(row, "tasks"):
            self._fail(f"round {number} opens with {planned} rows of {int_of(row, 'tasks')} tasks")

    def _job_opened(self, row: Row) -> None:
        opened = [each for each in self._world.jobs.rounds() if each.state is RoundState.OPEN]
        if len(opened) < int_of(row, "rounds"):
            self._fail(f"the job opens {int_of(row, 'rounds')} rounds, {len(opened)} are planned")

    def _brought_back(self, row: Row) -> None:
        """The round is open: only a new generation makes workers look at this task again."""
        job, task = self._world.job(), _task_of(row)
        if job is not None and job.rounds > int_of(row, "reopened_in"):
            self._late[self._world.schedule.current.host] = task

    def _renewed(self, _row: Row) -> None:
        self._late.pop(self._world.schedule.current.host, None)

    def command_done(self, host: Host) -> None:
        """A command has reported success."""
        if host in self._late:
            self._fail(f"{host.name} put {self._late[host]} back where no worker looks")

    def _exists(self, key: str, who: str) -> None:
        if key not in self._world.objects.objects:
            self._fail(f"{who} names {key}, which does not exist")

    def _fail(self, text: str) -> None:
        self._world.schedule.fail(Violation(text))


def _task_of(row: Row) -> TaskId:
    return keys.task_id(*keys.parse_task_id(str(row["sk"])))


def _number_of(row: Row) -> int:
    return int(str(row["sk"]).partition("#")[2])

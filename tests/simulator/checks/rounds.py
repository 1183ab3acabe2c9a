"""A retry's round has exactly the items and tasks that had failed with the selected classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from slurm_worker.protocol.job_rows import RoundRow
from slurm_worker.protocol.keys import MAX_TASKS, TaskId, TaskState, parse_task_id
from slurm_worker.protocol.ports import Row
from slurm_worker.protocol.tasks import TaskRow
from tests.simulator.checks.outcomes import Outcomes
from tests.simulator.checks.rows import Violation
from tests.simulator.world import World

_GIVEN_UP = (TaskState.FAILED, TaskState.QUARANTINED)


@dataclass
class _Times:
    created: float
    adopted: float = 0.0
    #: Tasks that had failed as a whole when the round was created, and their classes
    failed: dict[str, str] = field(default_factory=dict)


class Rounds:
    """Sees every write to the table, and knows when each retry's round was made.

    Args:
        world: whose table it watches.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._times: dict[int, _Times] = {}
        #: By sort key, the class of each task that has failed as a whole
        self._failed: dict[str, str] = {}
        #: By round, the tasks that it has put back
        self._reopened: dict[int, set[str]] = {}
        world.rows.watchers.append(self._applied)

    def check(self, rows: Mapping[TaskId, TaskRow], outcomes: Outcomes) -> None:
        """Check every retry's round.

        Raises:
            Violation: naming the round and its items, or a task.
        """
        items: dict[int, dict[str, TaskId]] = {}
        for task, row in rows.items():
            if row.sequence < MAX_TASKS:
                found = self._world.truth.read_slice(row.round_no, row.where).keys
                items.setdefault(row.round_no, {}).update(dict.fromkeys(found, task))
        for round_row in self._world.jobs.rounds()[1:]:
            times = self._times[round_row.number]
            needed = self._selected(round_row, items, outcomes, times.created)
            allowed = self._selected(round_row, items, outcomes, times.adopted)
            has = set(items.get(round_row.number, ()))
            if not needed <= has <= allowed:
                raise Violation(
                    f"round {round_row.number} lacks {sorted(needed - has)} and has "
                    f"{sorted(has - allowed)}, which it must not"
                )
            self._check_tasks(round_row, times)

    def _selected(
        self,
        round_row: RoundRow,
        items: Mapping[int, Mapping[str, TaskId]],
        outcomes: Outcomes,
        when: float,
    ) -> set[str]:
        """The items whose last end before this time was a failure that the round is about."""
        last: dict[str, int] = {}
        for number in range(round_row.number):
            last.update(dict.fromkeys(items.get(number, ()), number))
        ends = {
            (parse_task_id(task)[0], key): end
            for task, ended in outcomes.by_task.items()
            if self._world.seen.committed[self._world.paths.done(task)] <= when
            for key, end in ended.items()
        }
        only = self._only(round_row)
        return {
            key
            for key, number in last.items()
            if (end := ends.get((number, key)))
            and number < round_row.selector.get(end, 0)
            and (only is None or key in only)
        }

    def _check_tasks(self, round_row: RoundRow, times: _Times) -> None:
        if round_row.only:
            return
        for sk, error_class in times.failed.items():
            if round_row.selector.get(error_class, 0) < 1000:
                continue  # only if the user names the classes, whatever the policy says
            if sk in self._failed and sk not in self._reopened.get(round_row.number, ()):
                raise Violation(f"round {round_row.number} has not put back {sk}: {error_class}")

    def _only(self, round_row: RoundRow) -> set[str] | None:
        if not round_row.only:
            return None
        return set(
            json.loads(self._world.objects.objects[self._world.paths.inline(round_row.only)])
        )

    def _applied(self, name: str, _before: Row, after: Row) -> None:
        now, sk = self._world.schedule.now, str(after["sk"])
        if name == "put round":
            self._times[int(sk[-3:])] = _Times(now, failed=dict(self._failed))
        elif name == "round adopt":
            self._times[int(sk[-3:])].adopted = now
        elif "#TASK#" in str(after["pk"]):
            if name == "reopen":
                self._reopened.setdefault(int(str(after["reopened_in"])), set()).add(sk)
            if after.get("state") in _GIVEN_UP:
                self._failed[sk] = str(after["error_class"])
            else:
                self._failed.pop(sk, None)

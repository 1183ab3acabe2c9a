"""The table: what became of each statement, and a process's view of it over a network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import cast

from slurm_worker.protocol.keys import JOBS_PK
from slurm_worker.protocol.ports import (
    Applied,
    Refused,
    Row,
    Statement,
    int_of,
)
from slurm_worker.testing import MemoryRows
from tests.simulator.engine.schedule import Schedule
from tests.simulator.engine.seen import Seen
from tests.simulator.rules import broken_rule
from tests.simulator.stores.network import Network
from tests.simulator.stores.recent import Recent

#: The audit log's actions for what a worker does to a task of another.
RECORDED = {"steal": "lease_stolen", "quarantine": "quarantined"}


class WatchedRows(MemoryRows):
    """The table, with a record of what became of each statement and each row's state."""

    def __init__(self) -> None:
        super().__init__()
        #: Replaces a statement, to check that the simulator notices one that is broken.
        self.mutate: Callable[[Statement], Statement] = lambda statement: statement
        #: Called with each write that was applied: its name, the row before and after.
        self.watchers: list[Callable[[str, Row, Row], None]] = []
        #: Called with each update that was refused, and the row that it met; for mutants.
        self.on_refusal: Callable[[str, str, Statement, Row | None], None] = _nothing
        #: Rules that a write has broken; see `rules`.
        self.broken: list[str] = []
        #: Called with each of them.
        self.on_broken: Callable[[str], None] = lambda _rule: None
        #: Called with the key of each row that is deleted.
        self.on_delete: Callable[[str, str], None] = lambda _pk, _sk: None
        #: Gets a line when a write breaks a rule.
        self.say: Callable[[str], None] = lambda _line: None
        self.applied: Counter[str] = Counter()  #: by the statement's name
        self.refused: Counter[str] = Counter()
        #: By kind of row, state before and state after; only where they differ
        self.transitions: Counter[tuple[str, str, str]] = Counter()
        #: The states of task rows, by partition and sort key
        self.tasks: dict[tuple[str, str], str] = {}
        self._states: dict[tuple[str, str], str] = {}

    def put_new(self, row: Row) -> Applied | Refused:
        """See `ports.Rows.put_new`."""
        result = super().put_new(row)
        name = f"put {_kind_of(str(row['pk']), str(row['sk']))}"
        if isinstance(result, Applied):
            self._tell(name, {}, result.row)
        self._count_result(name, result)
        return result

    def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
        """See `ports.Rows.update`."""
        before = super().get(pk, sk) or {}
        result = super().update(pk, sk, self.mutate(statement))
        if isinstance(result, Applied):
            name = statement_name(statement)
            broken = broken_rule(name, before, result.row, statement.values)
            if broken:
                self.broken.append(f"{pk} {sk}: {broken}")
                self.say(f"A RULE IS BROKEN: {broken}")
                self.on_broken(self.broken[-1])
            self._tell(name, before, result.row)
        else:
            self.on_refusal(pk, sk, statement, result.row)
        self._count_result(statement_name(statement), result)
        return result

    def delete(self, pk: str, sk: str) -> None:
        """See `ports.Rows.delete`."""
        super().delete(pk, sk)
        self.on_delete(pk, sk)
        self.tasks.pop((pk, sk), None)
        self._states.pop((pk, sk), None)

    def _tell(self, name: str, before: Row, after: Row) -> None:
        for watcher in self.watchers:
            watcher(name, before, after)

    def _count_result(self, name: str, result: Applied | Refused) -> None:
        if isinstance(result, Refused):
            self.refused[name] += 1
            return
        self.applied[name] += 1
        row = result.row
        key = pk, sk = str(row["pk"]), str(row["sk"])
        kind, state = _kind_of(pk, sk), str(row.get("state", ""))
        if kind == "submit" and row.get("refused"):
            state = "refused"
        before = self._states.get(key, "absent")
        if state and state != before:
            self._states[key] = state
            self.transitions[kind, before, state] += 1
            if kind == "task":
                self.tasks[key] = state


def statement_name(statement: Statement) -> str:
    """The statement's name; the stages of all shards are one."""
    return "stage" if re.fullmatch(r"s\d+", statement.name) else statement.name


def remember(rows: WatchedRows, seen: Seen, schedule: Schedule) -> None:
    """Remember each write to a table for a moment, for reads that show the past."""

    def note(_name: str, before: Row, after: Row) -> None:
        recent = seen.rows.setdefault(str(after["pk"]), Recent())
        recent.note(schedule.now, str(after["sk"]), before or None)

    rows.watchers.append(note)


class SimRows:
    """`ports.Rows` over a network."""

    def __init__(self, rows: MemoryRows, network: Network, seen: Seen) -> None:
        self._rows = rows
        self._network = network
        self._seen = seen

    def get(self, pk: str, sk: str, *, consistent: bool = True) -> Row | None:
        """See `ports.Rows.get`."""

        def apply() -> Row | None:
            past = {} if consistent else self._past(pk)
            if sk in past:
                return deepcopy(past[sk])
            return self._rows.get(pk, sk, consistent=consistent)

        return self._network.call("get", apply, f"table read {pk}")

    def put_new(self, row: Row) -> Applied | Refused:
        """See `ports.Rows.put_new`."""

        def apply() -> Applied | Refused:
            result = self._rows.put_new(row)
            self._say(f"put {_short(str(row['pk']))} {row['sk']}", result)
            return result

        try:
            return self._network.call("put", apply, f"table write {row['pk']}", apply)
        except BaseException:
            # `Killed` as well: a process that dies here writes no audit event.
            if row.get("action") in RECORDED.values():
                detail = cast("Row", row["detail"])
                sk = str(detail["task"]).replace("-", "#")
                self._seen.unrecorded.add((str(row["action"]), sk, int_of(detail, "attempt")))
            raise

    def update(self, pk: str, sk: str, statement: Statement) -> Applied | Refused:
        """See `ports.Rows.update`."""
        taken: set[tuple[str, str, int]] = set()

        def apply() -> Applied | Refused:
            result = self._rows.update(pk, sk, statement)
            self._say(f"{statement.name} {_short(pk)} {sk}", result)
            if isinstance(result, Applied) and statement.name in RECORDED:
                attempt = int_of(result.row, "attempt") - (statement.name == "steal")
                taken.add((RECORDED[statement.name], sk, attempt))
            if isinstance(result, Applied) and statement.name in ("claim", "steal"):
                attempt = int_of(result.row, "attempt")
                self._seen.attempts.setdefault(sk, []).append(attempt)
            if isinstance(result, Refused) and statement.name == "claim":
                self._seen.requests["claim refused"] += 1
            return result

        def apply_late() -> None:
            apply()
            # Nobody gets this answer.
            self._seen.unrecorded |= taken

        try:
            result = self._network.call(statement.name, apply, f"table write {pk}", apply_late)
        except BaseException:
            # `Killed` as well: a process that dies here writes no audit event.
            self._seen.unrecorded |= taken
            raise
        if isinstance(result, Refused) and not _is_of(statement, result.row or {}):
            # Its first reply was lost, and the row has moved on: nobody can tell.
            self._seen.unrecorded |= taken
        return result

    def query(
        self,
        pk: str,
        *,
        after: str = "",
        limit: int | None = None,
        consistent: bool = False,
        backwards: bool = False,
    ) -> Iterator[Row]:
        """See `ports.Rows.query`."""

        def apply() -> list[Row]:
            # Again at each try: the reply of the previous one may have been lost.
            past = {} if consistent else self._past(pk)
            if not past:
                found = self._rows.query(
                    pk, after=after, limit=limit, consistent=consistent, backwards=backwards
                )
                return list(found)
            rows = {str(row["sk"]): row for row in self._rows.query(pk)} | deepcopy(past)
            old = sorted((sk, row) for sk, row in rows.items() if row is not None and sk > after)
            return [row for _, row in (old[::-1] if backwards else old)][:limit]

        yield from self._network.call("query", apply, f"table read {pk}")

    def _past(self, pk: str) -> dict[str, Row | None]:
        recent = self._seen.rows.get(pk)
        if recent is None:
            return {}
        return self._network.past(recent, self._network.rates.stale_read_s, "stale read")

    def delete(self, pk: str, sk: str) -> None:
        """See `ports.Rows.delete`."""
        self._network.call("delete", lambda: self._rows.delete(pk, sk), f"table write {pk}")
        self._seen.write(self._network.host, f"delete {_short(pk)} {sk}")

    def _say(self, write: str, result: Applied | Refused) -> None:
        refused = " refused" if isinstance(result, Refused) else ""
        self._seen.write(self._network.host, f"{write}{refused}")


def _nothing(_pk: str, _sk: str, _statement: Statement, _row: Row | None) -> None:
    """Ignore the refusal."""


def _short(pk: str) -> str:
    """A partition key without the job's name."""
    kind, _, rest = pk.partition("#")
    return rest.partition("#")[2] or "job" if kind == "JOB" else pk


def _kind_of(pk: str, sk: str) -> str:
    if "#TASK#" in pk:
        return "task"
    if "#EVENT#" in pk:
        return "event"
    if pk == JOBS_PK:
        return "list of jobs"
    return {"META": "job", "SLOT": "limit"}.get(sk.partition("#")[0], sk.partition("#")[0].lower())


def _is_of(statement: Statement, row: Row) -> bool:
    return statement.name == "steal" and row.get("request") == statement.values["request"]

"""Rules of the table's rows: what no write may do, whatever its condition says.

Each rule compares a row before and after a write that was applied, and knows nothing of the
statement's text. So it finds a condition that is missing or too weak at the first write that the
condition would have refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from slurm_worker.errors import ErrorClass
from slurm_worker.protocol.ports import Row, int_of

#: Statement and a task's states before and after it.
_TASK_STEPS = {
    "claim": {("ready", "leased")},
    "steal": {("leased", "leased")},
    "quarantine": {("leased", "quarantined")},
    "heartbeat": {("leased", "leased")},
    "complete": {(state, "done") for state in ("ready", "leased", "failed", "quarantined", "done")},
    "decide": {(state, state) for state in ("ready", "leased", "failed", "quarantined", "done")},
    "fail": {("leased", "ready"), ("leased", "failed")},
    "release": {("leased", "ready")},
    "undo claim": {("leased", "ready")},
    "crashed": {("leased", "ready")},
    "abandon": {("leased", "leased")},
    "excuse loss": {("leased", "leased"), ("ready", "ready")},
    "reopen": {("failed", "ready"), ("quarantined", "ready")},
    "record cause": {("quarantined", "quarantined")},
}
#: No task needs so many leases: who takes them makes no progress.
_MOST_LEASES = 250
#: Statements of the process that holds the lease: owner and attempt must be its own.
_OF_HOLDER = ("heartbeat", "fail", "release", "crashed", "abandon")


def broken_rule(name: str, before: Row, after: Row, values: Mapping[str, object]) -> str:
    """The rule that a write has broken; empty if there is none.

    Args:
        name: the statement's name.
        before: the row; empty if there was none.
        after: the row that the write has left.
        values: the statement's values.
    """
    pk, sk = str(after["pk"]), str(after["sk"])
    if "#TASK#" in pk:
        return _task(name, before, after, values)
    kind = sk.partition("#")[0]
    rules = _RULES.get(kind, ())
    return next((found for rule in rules if (found := rule(name, before, after, values))), "")


def _task(name: str, before: Row, after: Row, values: Mapping[str, object]) -> str:
    if not before:
        return f"{name} has made a task row"
    leased = after.get("state") == "leased"
    if any((field in after) is not leased for field in ("owner", "lease_until")):
        return f"{name} leaves a task {after.get('state')} with owner {after.get('owner')}"
    step = str(before.get("state")), str(after.get("state"))
    if step not in _TASK_STEPS[name]:
        return f"{name} takes a task from {step[0]} to {step[1]}"
    if name in _OF_HOLDER:
        held = before.get("owner"), before.get("attempt")
        if held != (values["owner"], values["attempt"]):
            return f"{name} of {values['owner']}, attempt {values['attempt']}; {held} holds it"
    granted = int_of(after, "attempt") - int_of(before, "attempt")
    if granted != (name in ("claim", "steal")):
        return f"{name} moves the attempt by {granted}"
    rules = (
        _no_end,
        _waits,
        _expired,
        _own_request,
        _one_winner,
        _lost,
        _cause,
        _reopened_once,
    )
    return next((found for rule in rules if (found := rule(name, before, after, values))), "")


def _no_end(_name: str, _before: Row, after: Row, _values: Mapping[str, object]) -> str:
    leases = int_of(after, "attempt")
    return f"a task was leased {leases} times" if leases > _MOST_LEASES else ""


def _waits(name: str, before: Row, _after: Row, values: Mapping[str, object]) -> str:
    due = int_of(before, "not_before")
    early = name == "claim" and due and due > _int(values["now"])
    return "claim takes a task before its time" if early else ""


def _expired(name: str, before: Row, _after: Row, values: Mapping[str, object]) -> str:
    if name not in ("steal", "quarantine"):
        return ""
    if int_of(before, "lease_until") >= _int(values["dead"]):
        return f"{name} takes a lease that has not run out"
    return "" if before.get("version") == values["seen"] else f"{name} takes a lease that moves"


def _own_request(name: str, before: Row, _after: Row, values: Mapping[str, object]) -> str:
    other = name == "undo claim" and before.get("request") != values["request"]
    return "undo claim gives back another request's lease" if other else ""


def _one_winner(name: str, before: Row, after: Row, _values: Mapping[str, object]) -> str:
    was, now = before.get("winner"), after.get("winner")
    decided = name == "decide" or before.get("state") == "done"
    changed = decided and was is not None and was != now
    return f"{name} replaces winner {was} by {now}" if changed else ""


def _lost(name: str, before: Row, after: Row, values: Mapping[str, object]) -> str:
    change = int_of(after, "lost") - int_of(before, "lost")
    allowed = {"steal": 1, "excuse loss": -1}.get(name, 0)
    if name == "reopen":
        return "" if int_of(after, "lost") == 0 else "reopen keeps lost leases"
    if change != allowed:
        return f"{name} changes the lost leases by {change}"
    if int_of(after, "lost") < 0:
        return f"{name} takes off a loss that was not counted"
    if name == "excuse loss" and int_of(before, "attempt") <= _int(values["attempt"]):
        return "excuse loss excuses an attempt that has lost nothing"
    again = name == "excuse loss" and int_of(before, "excused") >= int_of(after, "excused")
    return "excuse loss excuses an attempt again" if again and before.get("excused") else ""


def _cause(name: str, before: Row, _after: Row, values: Mapping[str, object]) -> str:
    if name != "record cause":
        return ""
    if before.get("attempt") != values["attempt"]:
        return "record cause blames an attempt for what happened to another"
    known = before.get("error_class") != ErrorClass.WORKER_CRASH.value
    return "record cause replaces what is known" if known else ""


def _reopened_once(name: str, before: Row, after: Row, values: Mapping[str, object]) -> str:
    if name != "reopen":
        return ""
    if int_of(before, "reopened_in") >= int_of(after, "reopened_in") and before.get("reopened_in"):
        return "reopen puts a task back twice in a round"
    same = before.get("attempt") == values["attempt"]
    return "" if same else "reopen puts a task back that has run since"


def _exists(name: str, before: Row, _after: Row, _values: Mapping[str, object]) -> str:
    """Only a put makes rows, except those of which one update is the whole content."""
    return "" if before else f"{name} has made a row"


def _job(name: str, before: Row, after: Row, _values: Mapping[str, object]) -> str:
    for field in ("rounds", "repaired"):
        if int_of(after, field) < int_of(before, field):
            return f"a job's {field} fall"
    for field in ("stop", "paused", "draft"):
        was, now = before.get(field), after.get(field)
        if was is not None and now is not None and was != now:
            return f"a job's {field} is replaced"
    if name == "job adopt" and before.get("state") != "planning":
        return "an open job is planned again"
    return "an open job is planned again" if _left(before, after, "open") else ""


def _round(_name: str, before: Row, after: Row, _values: Mapping[str, object]) -> str:
    was = before.get("draft")
    if was is not None and was != after.get("draft"):
        return "a round's draft is replaced"
    if int_of(after, "cursor") < int_of(before, "cursor"):
        return "a round's cursor falls"
    changed = before.get("state") == "open" and before != after
    return "an open round is changed" if changed else ""


def _submission(name: str, before: Row, after: Row, values: Mapping[str, object]) -> str:
    if before.get("token") != values["token"]:
        return f"{name} and its row have different tokens"
    had, has = before.get("slurm_job_ids") or [], after.get("slurm_job_ids") or []
    if isinstance(had, list) and isinstance(has, list) and has[: len(had)] != had:
        return f"a submission loses arrays: {had} to {has}"
    if _left(before, after, "submitted"):
        return "a submission that was made is intended again"
    if after.get("state") == "submitted" and after.get("refused"):
        return "a submission that was made counts as refused"
    sizes = ("workers", "array_size")
    sized = any(before.get(field) != after.get(field) for field in sizes)
    if sized and not before.get("refused"):
        return "a submission's workers change although Slurm may have them"
    return ""


def _cursor(_name: str, before: Row, after: Row, _values: Mapping[str, object]) -> str:
    old = int_of(before, "generation"), str(before.get("after", ""))
    new = int_of(after, "generation"), str(after.get("after", ""))
    return "" if not before or new > old else "a shard's cursor falls"


def _stages(_name: str, before: Row, after: Row, _values: Mapping[str, object]) -> str:
    names = [name for name in after if name[:1] == "s" and name[1:].isdigit()]
    falls = any(int_of(after, name) < int_of(before, name) for name in names)
    return "a shard's stage falls" if falls else ""


def _limit(_name: str, before: Row, after: Row, _values: Mapping[str, object]) -> str:
    for field in ("tat", "epoch", "window", "returns"):
        if int_of(after, field) < int_of(before, field):
            return f"a limit's {field} falls"
    spent = int_of(before, "used") - int_of(after, "used")
    same_day = before.get("window") == after.get("window")
    returned = int_of(after, "returns") > int_of(before, "returns")
    if spent > 0 and same_day and not returned:
        return "a quota is given back without a count"
    changed = before.get("rate") != after.get("rate")
    same = before.get("epoch") == after.get("epoch")
    return "a rate changes within its epoch" if changed and same else ""


def _slice(name: str, before: Row, after: Row, values: Mapping[str, object]) -> str:
    """A slice of the schedule was computed from the row that it is taken from."""
    if not name.startswith("reserve"):
        return ""
    if before.get("epoch") != values["epoch"]:
        return f"{name} takes a slice at a rate that was changed"
    if before.get("window") != values["window"]:
        return f"{name} charges another day"
    if int_of(after, "used") > _int(values["most"]) + _int(values["charge"]):
        return "a day's quota is overdrawn"
    if name == "reserve now":
        return ""
    if int_of(before, "tat") < _int(values["floor"]):
        return "a slice begins before the burst that is due"
    ahead = int_of(before, "tat") > _int(values["ceiling"])
    return "a schedule runs ahead beyond the horizon" if ahead else ""


def _returned(name: str, before: Row, _after: Row, values: Mapping[str, object]) -> str:
    if name != "return quota":
        return ""
    if before.get("window") != values["window"]:
        return "a quota is given back to another day"
    if before.get("returned_by") == values["request"]:
        return "a quota is given back twice"
    other = int_of(before, "returns") != _int(values["returns"])
    return "a quota is given back that may have been given back already" if other else ""


def _rated(name: str, before: Row, after: Row, values: Mapping[str, object]) -> str:
    if name not in ("cut rate", "raise rate"):
        return ""
    if before.get("epoch") != values["epoch"]:
        return f"{name} changes a rate that it has not seen"
    if int_of(before, "changed") > _int(values["before"]):
        return f"{name} changes a rate twice in its time"
    raised = name == "raise rate" and int_of(after, "rate") <= int_of(before, "rate")
    return "a rate is raised, and does not rise" if raised else ""


def _left(before: Row, after: Row, state: str) -> bool:
    return before.get("state") == state and after.get("state") != state


def _int(value: object) -> int:
    assert isinstance(value, int), value
    return value


_Rule: TypeAlias = Callable[[str, Row, Row, Mapping[str, object]], str]
_RULES: dict[str, tuple[_Rule, ...]] = {
    "META": (_exists, _job),
    "ROUND": (_exists, _round),
    "SUBMIT": (_exists, _submission),
    "MARK": (_cursor,),
    "STAGES": (_stages,),
    "SLOT": (_exists, _limit, _slice, _returned, _rated),
}

"""Every conditional update of a task's row.

A task's lease over time (`now` is AWS time; `margin` covers clocks that differ):

    claim          heartbeats            lease_until      lease_until + margin
      │  attempt+1   │   │   │               │                  │
      ├──────────────┴───┴───┴───────────────┼──────────────────┼──────────────►
      │ owner and attempt guard every write  │ cannot be stolen │ may be stolen, if
      │ of the holder                        │                  │ `version` did not move

`attempt` is the fence: it rises with each claim and never falls, so a write of a former
holder is refused. `task_table.py` says what a refusal or a lost reply means to each caller.
Times are in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slurm_worker.errors import ErrorClass
from slurm_worker.protocol.job_store import Marker
from slurm_worker.protocol.keys import TaskState
from slurm_worker.protocol.ports import Row, Statement, Value
from slurm_worker.protocol.statements import statement
from slurm_worker.protocol.task_history import Crash, HistoryEntry

_HELD = "#state = :leased AND #owner = :owner AND #attempt = :attempt"
_EXPIRED = "#state = :leased AND #lease_until < :dead AND #version = :seen"
_LEASE = (
    "SET #state = :leased, #owner = :owner, #request = :request, #version = :request, "
    "#lease_until = :until, #started = :now, #attempt = if_not_exists(#attempt, :zero) + :one"
)
_END_LEASE = "REMOVE #owner, #lease_until"
_ADD_HISTORY = "#history = list_append(if_not_exists(#history, :none), :event)"
_RELEASE = (
    f"SET #state = :ready, #checkpoint = :checkpoint, #requests = :requests, {_ADD_HISTORY} "
    f"{_END_LEASE}, #not_before"
)


def claim(owner: str, request: str, now: int, until: int) -> Statement:
    """Lease a ready task until a time; `request` is an id that no other request has."""
    return statement(
        "claim",
        f"{_LEASE} REMOVE #not_before",
        "#state = :ready AND (attribute_not_exists(#not_before) OR #not_before <= :now)",
        {"owner": owner, "request": request, "now": now, "until": until},
    )


def steal(
    owner: str,
    request: str,
    now: int,
    until: int,
    *,
    dead: int,
    seen: str,
    history: Sequence[HistoryEntry],
) -> Statement:
    """Lease a task whose lease has expired, in one write; see `claim`.

    A lease that ended before `dead` has expired: the margin is over. A holder that lives has
    changed the version that was `seen` a heartbeat interval ago. The `history` has the new entry,
    none where the row's is full.
    """
    lease: Row = {"owner": owner, "request": request, "now": now, "until": until}
    return statement(
        "steal",
        f"{_LEASE}, #lost = if_not_exists(#lost, :zero) + :one, {_ADD_HISTORY}",
        _EXPIRED,
        {"dead": dead, "seen": seen, **lease, **_event(*history)},
    )


def quarantine(*, dead: int, seen: str, message: str, history: HistoryEntry) -> Statement:
    """Give up a task that has lost its lease too often; see `steal`."""
    return statement(
        "quarantine",
        "SET #state = :quarantined, #error_class = :crashed, #error = :message, "
        f"{_ADD_HISTORY} {_END_LEASE}",
        _EXPIRED,
        {"dead": dead, "seen": seen, "message": message, **_event(history)},
    )


def heartbeat(
    owner: str, attempt: int, version: str, until: int, *, ok: int, failed: int, checkpoint: str
) -> Statement:
    """Renew a lease; record progress (in items) and the checkpoint in the same write."""
    progress: Row = {"ok": ok, "bad": failed, "checkpoint": checkpoint}
    return statement(
        "heartbeat",
        "SET #lease_until = :until, #version = :version, #items_ok = :ok, "
        "#items_failed = :bad, #checkpoint = :checkpoint",
        _HELD,
        {"owner": owner, "attempt": attempt, "version": version, "until": until, **progress},
    )


def complete(marker: Marker, now: int) -> Statement:
    """Record that a task is done: what its marker says.

    No fence: the `.done` marker has already decided, and any worker may bring the row to it.
    """
    return statement(
        "complete",
        "SET #state = :done, #winner = :winner, #items_ok = :ok, #items_failed = :bad, "
        "#failed_by = :by, #rows = :rows, #finished = :now, #worker = :worker, #node = :node, "
        f"#took = :took, #requests = :requests {_END_LEASE}, #not_before, #error_class, #error",
        "attribute_exists(#pk) AND (#state <> :done OR #winner = :winner)",
        {
            "winner": marker.attempt,
            "ok": marker.ok,
            "bad": sum(marker.failed.values()),
            "by": dict[str, Value](marker.failed),
            "rows": marker.rows,
            "now": now,
            "worker": marker.worker,
            "node": marker.slurm.get("node", ""),
            "took": max(0, int((marker.finished - marker.started) * 1000)),
            "requests": dict[str, Value](marker.requests),
        },
    )


def decide(winner: int) -> Statement:
    """Choose the attempt whose marker counts, for stores without conditional PUT."""
    return statement(
        "decide",
        "SET #winner = :winner",
        "attribute_exists(#pk) AND (attribute_not_exists(#winner) OR #winner = :winner)",
        {"winner": winner},
    )


def fail(
    owner: str,
    attempt: int,
    *,
    next_state: TaskState,
    not_before: int,
    error_class: ErrorClass,
    message: str,
    history: Sequence[HistoryEntry],
) -> Statement:
    """End an attempt that failed and count a try; the task is ready at `not_before`, or failed."""
    error: Row = {"class": error_class.value, "message": message}
    return statement(
        "fail",
        "SET #state = :next, #not_before = :not_before, #error_class = :class, "
        f"#error = :message, #tries = if_not_exists(#tries, :zero) + :one, {_ADD_HISTORY} "
        f"{_END_LEASE}",
        _HELD,
        {
            "owner": owner,
            "attempt": attempt,
            "next": next_state.value,
            "not_before": not_before,
            **error,
            **_event(*history),
        },
    )


def release(
    owner: str,
    attempt: int,
    *,
    checkpoint: str,
    requests: Mapping[str, int],
    history: Sequence[HistoryEntry],
) -> Statement:
    """Give a lease back without counting a try, for preemption and drain.

    The requests that were made of AWS for the task are kept for its marker.
    """
    saved = _saved(checkpoint, requests)
    values: Row = {"owner": owner, "attempt": attempt, **saved, **_event(*history)}
    return statement("release", _RELEASE, _HELD, values)


def undo_claim(
    request: str, *, checkpoint: str, requests: Mapping[str, int], history: Sequence[HistoryEntry]
) -> Statement:
    """Give back what a claim or a steal may have leased whose reply never came.

    The condition is on its request: the same worker may have leased the task at the same
    attempt since, by another request.
    """
    values: Row = {"request": request, **_saved(checkpoint, requests), **_event(*history)}
    condition = "#state = :leased AND #request = :request"
    return statement("undo claim", _RELEASE, condition, values)


def record_crash(owner: str, attempt: int, crash: Crash, history: HistoryEntry) -> Statement:
    """End the lease of a process that died; its supervisor reports on which item."""
    return statement(
        "crashed",
        "SET #state = :ready, #crashes = list_append(if_not_exists(#crashes, :none), :crash), "
        f"{_ADD_HISTORY} {_END_LEASE}",
        _HELD,
        {"owner": owner, "attempt": attempt, "crash": [crash.to_text()], **_event(history)},
    )


def abandon(owner: str, attempt: int) -> Statement:
    """End the lease of a dead holder, so that it is stolen without a wait."""
    values: Row = {"owner": owner, "attempt": attempt}
    return statement("abandon", "SET #lease_until = :zero", _HELD, values)


def excuse_loss(attempt: int) -> Statement:
    """Do not count a lost lease against the task: its holder lives.

    Each attempt is excused once, so a request that is repeated after a lost reply changes
    nothing.
    """
    return statement(
        "excuse loss",
        "SET #lost = #lost - :one, #excused = :attempt",
        "#lost > :zero AND #attempt > :attempt AND (#state = :leased OR #state = :ready) "
        "AND (attribute_not_exists(#excused) OR #excused < :attempt)",
        {"attempt": attempt},
    )


def reopen(was: TaskState, attempt: int, round_no: int, history: HistoryEntry) -> Statement:
    """Put a failed or quarantined task back for a retry's round, with its counts at zero.

    Once in a round: a call that is repeated finds the task where the first call's workers
    left it.
    """
    return statement(
        "reopen",
        f"SET #state = :ready, #tries = :zero, #lost = :zero, {_ADD_HISTORY}, "
        "#reopened = if_not_exists(#reopened, :zero) + :one, #reopened_in = :round "
        "REMOVE #not_before, #error_class, #error, #owner, #lease_until, #crashes",
        "#state = :was AND #attempt = :attempt "
        "AND (attribute_not_exists(#reopened_in) OR #reopened_in < :round)",
        {"was": was.value, "attempt": attempt, "round": round_no, **_event(history)},
    )


def record_cause(attempt: int, error_class: ErrorClass, message: str) -> Statement:
    """Give a task whose workers died the error class that Slurm knows."""
    return statement(
        "record cause",
        "SET #error_class = :class, #error = :message",
        "#state = :quarantined AND #attempt = :attempt AND #error_class = :crashed",
        {"attempt": attempt, "class": error_class.value, "message": message},
    )


def _saved(checkpoint: str, requests: Mapping[str, int]) -> Row:
    return {"checkpoint": checkpoint, "requests": dict[str, Value](requests)}


def _event(*history: HistoryEntry) -> Row:
    return {"event": [entry.to_row() for entry in history]}

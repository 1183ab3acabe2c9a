"""Every conditional update of a rate limit's row (GCRA; times in microseconds).

`limiter.py` says what a refusal means to each caller.
"""

from __future__ import annotations

from slurm_worker.protocol.ports import Statement
from slurm_worker.protocol.statements import statement

_AS_SEEN = "#epoch = :epoch AND #window = :window AND #used <= :most"


def reserve_next(
    *, cost: int, charge: int, floor: int, ceiling: int, epoch: int, window: int, most: int
) -> Statement:
    """Reserve the next slice of a schedule that runs ahead of now, up to the `ceiling`.

    The slice moves the schedule on by `cost`, and charges `charge` calls to the day's quota, of
    which at most `most` are charged already. A schedule before the `floor` is idle. `epoch` and
    `window`, the day, are those of the row as it was seen.
    """
    seen = {"epoch": epoch, "window": window, "most": most}
    return statement(
        "reserve next",
        "SET #tat = #tat + :cost, #used = #used + :charge",
        f"#tat >= :floor AND #tat <= :ceiling AND {_AS_SEEN}",
        {"cost": cost, "charge": charge, "floor": floor, "ceiling": ceiling, **seen},
    )


def reserve_now(
    *, cost: int, charge: int, floor: int, epoch: int, window: int, most: int
) -> Statement:
    """Reserve a slice of an idle schedule: it is behind now by more than the burst, and restarts.

    Arguments are those of `reserve_next`.
    """
    seen = {"epoch": epoch, "window": window, "most": most}
    return statement(
        "reserve now",
        "SET #tat = :floor_plus_cost, #used = #used + :charge",
        f"#tat < :floor AND {_AS_SEEN}",
        {"floor_plus_cost": floor + cost, "charge": charge, "floor": floor, **seen},
    )


def begin_day(day: int) -> Statement:
    """Begin a new day of a quota; refused means that it has begun."""
    update = "SET #window = :window, #used = :zero"
    return statement("new window", update, "#window < :window", {"window": day})


def return_quota(calls: int, day: int, returns: int, request: str) -> Statement:
    """Give back calls that were charged to this day and surely not made.

    `returns` counts these writes and never falls, so one that is repeated after a lost reply,
    or arrives late, is refused: use is never counted too low. No other request has the id
    `request`.
    """
    return statement(
        "return quota",
        "SET #used = #used - :calls, #returned_by = :request, "
        "#returns = if_not_exists(#returns, :zero) + :one",
        "#window = :window AND (attribute_not_exists(#returns) OR #returns = :returns)",
        {"calls": calls, "window": day, "returns": returns, "request": request},
    )


def cut_rate(rate: int, epoch: int, now: int, before: int) -> Statement:
    """Cut the rate: once per window, however many workers saw a 429.

    The rate is in thousandths of a token per second; its last change was before `before`.
    """
    return statement(
        "cut rate",
        "SET #rate = :rate, #epoch = #epoch + :one, #changed = :now",
        "#epoch = :epoch AND #changed < :before",
        {"rate": rate, "epoch": epoch, "now": now, "before": before},
    )


def raise_rate(rate: int, epoch: int, now: int, before: int, *, cap: int, full: int) -> Statement:
    """Raise a rate that is lower than `cap`, our job's; see `cut_rate`.

    `full` is the highest rate of any job that shares the limit.
    """
    limits = {"cap": cap, "full": full}
    return statement(
        "raise rate",
        "SET #rate = :rate, #full = :full, #epoch = #epoch + :one, #changed = :now",
        "#epoch = :epoch AND #changed < :before AND #rate < :cap",
        {"rate": rate, "epoch": epoch, "now": now, "before": before, **limits},
    )


def push_schedule(tat: int) -> Statement:
    """Heed ``Retry-After``: nothing is sent before this time."""
    return statement("push tat", "SET #tat = :tat", "#tat < :tat", {"tat": tat})

"""Every conditional update of a job's own rows: META, rounds, submissions, cursors.

`job_table.py` and `shard_progress.py` say what a refusal means to each caller. Times are in
milliseconds unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from slurm_worker.protocol.ports import Row, Statement
from slurm_worker.protocol.statements import statement

_EXISTS = "attribute_exists(#pk)"


def adopt_draft(draft: int) -> Statement:
    """Make a draft a round's plan for good: the first caller's draft."""
    return statement(
        "round adopt",
        "SET #draft = :draft",
        "#state = :planning AND attribute_not_exists(#draft)",
        {"draft": draft},
    )


def adopt_plan(draft: int, identity: str, config: str, shards: int) -> Statement:
    """Decide on the plan of a job without tasks that an earlier release has begun to plan."""
    return statement(
        "job adopt",
        "SET #draft = :draft, #identity = :identity, #config = :config, #shards = :shards",
        "#state = :planning AND attribute_not_exists(#draft)",
        {"draft": draft, "identity": identity, "config": config, "shards": shards},
    )


def advance_round_cursor(cursor: int) -> Statement:
    """Record that the first `cursor` task rows of a round exist."""
    return statement(
        "round cursor",
        "SET #cursor = :cursor",
        "#state = :planning AND #cursor < :cursor",
        {"cursor": cursor},
    )


def open_round(tasks: int, items: int, retried: Mapping[str, int], now: int) -> Statement:
    """Record that a round is planned, and its size."""
    return statement(
        "round open",
        "SET #state = :open, #tasks = :tasks, #items = :items, #retried = :retried, #opened = :now",
        "#state = :planning",
        {"tasks": tasks, "items": items, "retried": dict(retried), "now": now},
    )


def open_job(rounds: int) -> Statement:
    """Tell workers that so many rounds are open; the number only rises."""
    update = "SET #state = :open, #rounds = :rounds"
    return statement("job open", update, "#rounds < :rounds", {"rounds": rounds})


def set_config(digest: str) -> Statement:
    """Point new workers at another resolved configuration."""
    return statement("job config", "SET #config = :config", _EXISTS, {"config": digest})


def stop(reason: str) -> Statement:
    """Trip the job's breaker; the first reason stays."""
    condition = f"{_EXISTS} AND attribute_not_exists(#stop)"
    return statement("job stop", "SET #stop = :reason", condition, {"reason": reason})


def pause(who: str) -> Statement:
    """Pause the job, so that no task is leased; the first who paused it stays."""
    condition = f"{_EXISTS} AND attribute_not_exists(#paused)"
    return statement("job pause", "SET #paused = :who", condition, {"who": who})


def resume() -> Statement:
    """Reset the breaker and a pause."""
    condition = "attribute_exists(#stop) OR attribute_exists(#paused)"
    return statement("job resume", "REMOVE #stop, #paused", condition, {})


def begin_generation(now_s: int) -> Statement:
    """Void what is known of old rows. The number rises each time, whatever the clocks say."""
    update = "SET #repaired = if_not_exists(#repaired, :now) + :one"
    return statement("job generation", update, _EXISTS, {"now": now_s})


def advance_shard_cursor(generation: int, after: str) -> Statement:
    """Record how far a shard is processed, within a generation; it only moves forward."""
    return statement(
        "cursor",
        "SET #generation = :generation, #after = :after",
        "attribute_not_exists(#pk) OR #generation < :generation "
        "OR (#generation = :generation AND #after < :after)",
        {"generation": generation, "after": after},
    )


def record_stage(shard: int, stage: int) -> Statement:
    """Record what is left of a shard; it only rises. One row holds the stages of all shards."""
    name = stage_name(shard)
    condition = f"attribute_not_exists(#{name}) OR #{name} < :stage"
    return statement(name, f"SET #{name} = :stage", condition, {"stage": stage})


def stage_name(shard: int) -> str:
    """The attribute that `record_stage` sets."""
    return f"s{shard}"


def record_submitted(
    token: str, slurm_job_ids: Sequence[str], known: Sequence[str], now: int
) -> Statement:
    """Record the arrays of a submission; `known` are those that the row may have already.

    The token was fixed when the intent was written: it is in the names of the arrays.
    """
    return statement(
        "submitted",
        "SET #state = :submitted, #slurm_job_ids = :slurm_job_ids, #submitted = :now "
        "REMOVE #refused",
        "#token = :token AND (#state = :intent OR #slurm_job_ids = :known)",
        {"token": token, "slurm_job_ids": list(slurm_job_ids), "known": list(known), "now": now},
    )


def record_refusal(token: str) -> Statement:
    """Record that Slurm has refused the arrays and had none of this token then.

    Another caller's array may have come since.
    """
    condition = "#token = :token AND #state = :intent"
    return statement("submit refused", "SET #refused = :yes", condition, {"token": token})


def renew_intent(
    token: str, workers: int, array_size: int, now: int, *, requested: bool
) -> Statement:
    """Intend other workers after a refusal; the token stays."""
    wanted: Row = {"workers": workers, "array_size": array_size, "requested": requested}
    return statement(
        "intend again",
        "SET #workers = :workers, #array_size = :array_size, #asked = :requested, #intent = :now "
        "REMOVE #refused",
        "#token = :token AND #state = :intent AND #refused = :yes",
        {"token": token, "now": now, **wanted},
    )

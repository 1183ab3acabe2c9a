"""Every condition and update on rows, named.

A task's lease over time (`now` is AWS time; `margin` covers clocks that differ):

    claim          heartbeats            lease_until      lease_until + margin
      │  attempt+1   │   │   │               │                  │
      ├──────────────┴───┴───┴───────────────┼──────────────────┼──────────────►
      │ owner and attempt guard every write  │ nobody may steal │ may be stolen, if
      │ of the holder                        │                  │ `version` did not move

`attempt` is the fence: it rises with each claim and never falls, so a write of a former
holder is refused. What a refusal or a lost reply means is said at each call site in
`task_table.py`.
"""

from __future__ import annotations

from functools import cache

from slurm_worker.protocol.ports import Statement

_READY = "#state = :ready AND (attribute_not_exists(#not_before) OR #not_before <= :now)"
_HELD_BY_ME = "#state = :leased AND #owner = :owner AND #attempt = :attempt"
_TAKE = (
    "SET #state = :leased, #owner = :owner, #request = :request, #version = :request, "
    "#lease_until = :until, #started = :now, #attempt = if_not_exists(#attempt, :zero) + :one"
)
_LET_GO = "REMOVE #owner, #lease_until"
_HISTORY = "#history = list_append(if_not_exists(#history, :none), :event)"

CLAIM = Statement("claim", f"{_TAKE} REMOVE #not_before", _READY)

#: Reap and claim in one write: the lease is past by the margin *and* the version is the
#: one that this worker saw a heartbeat interval ago.
STEAL = Statement(
    "steal",
    f"{_TAKE}, #lost = if_not_exists(#lost, :zero) + :one, {_HISTORY}",
    "#state = :leased AND #lease_until < :dead AND #version = :seen",
)

#: As STEAL, for a task that has lost its lease too often.
QUARANTINE = Statement(
    "quarantine",
    f"SET #state = :quarantined, #error_class = :class, #error = :message, {_HISTORY} {_LET_GO}",
    "#state = :leased AND #lease_until < :dead AND #version = :seen",
)

#: Lease, progress and checkpoint in one write.
HEARTBEAT = Statement(
    "heartbeat",
    "SET #lease_until = :until, #version = :request, #items_ok = :ok, #items_failed = :failed, "
    "#checkpoint = :checkpoint",
    _HELD_BY_ME,
)

#: No fence: the `.done` marker has already decided, and anybody may bring the row to it.
COMPLETE = Statement(
    "complete",
    "SET #state = :done, #winner = :winner, #items_ok = :ok, #items_failed = :failed, "
    "#failed_by = :by, #rows = :rows, #finished = :now, #worker = :worker, #node = :node, "
    f"#took = :took, #requests = :requests {_LET_GO}, #not_before, #error_class, #error",
    "attribute_exists(#pk) AND (#state <> :done OR #winner = :winner)",
)

#: Which attempt's marker shall stand, for stores without conditional PUT.
DECIDE = Statement(
    "decide",
    "SET #winner = :winner",
    "attribute_exists(#pk) AND (attribute_not_exists(#winner) OR #winner = :winner)",
)

FAIL = Statement(
    "fail",
    "SET #state = :next, #not_before = :not_before, #error_class = :class, #error = :message, "
    f"#tries = if_not_exists(#tries, :zero) + :one, {_HISTORY} {_LET_GO}",
    _HELD_BY_ME,
)

#: Preemption and drain: no try is counted. What was asked of AWS for it is kept for its marker.
RELEASE = Statement(
    "release",
    "SET #state = :ready, #checkpoint = :checkpoint, #requests = :requests, "
    f"{_HISTORY} {_LET_GO}, #not_before",
    _HELD_BY_ME,
)

#: A claim or a steal was not answered, and may have got the lease. Its request is asked for: the
#: same worker may have leased the task at the same attempt since, by another request.
DISOWN = Statement("disown", RELEASE.update, "#state = :leased AND #request = :taking")

#: The process died and its supervisor says on which item; no lease need run out.
CRASHED = Statement(
    "crashed",
    "SET #state = :ready, #crashes = list_append(if_not_exists(#crashes, :none), :crash), "
    f"{_HISTORY} {_LET_GO}",
    _HELD_BY_ME,
)

#: Its holder is known to be dead; whoever comes next steals it without waiting.
ABANDON = Statement("abandon", "SET #lease_until = :zero", _HELD_BY_ME)

#: The holder of a lease that was stolen lives: neither it nor its task is to blame. Each attempt
#: is excused once, so a request that is repeated after a lost reply changes nothing.
EXCUSE = Statement(
    "excuse",
    "SET #lost = #lost - :one, #excused = :attempt",
    "#lost > :zero AND #attempt > :attempt AND (#state = :leased OR #state = :ready) "
    "AND (attribute_not_exists(#excused) OR #excused < :attempt)",
)

#: A retry puts a task that failed or was quarantined back, with its counts at zero: once in
#: its round, so that a call that is repeated finds it where the first call's workers left it.
REOPEN = Statement(
    "reopen",
    f"SET #state = :ready, #tries = :zero, #lost = :zero, {_HISTORY}, "
    "#reopened = if_not_exists(#reopened, :zero) + :one, #reopened_in = :round "
    "REMOVE #not_before, #error_class, #error, #owner, #lease_until, #crashes",
    "#state = :was AND #attempt = :attempt "
    "AND (attribute_not_exists(#reopened_in) OR #reopened_in < :round)",
)

#: A task that was given up because its workers died gets the class that Slurm knows.
ATTRIBUTE = Statement(
    "attribute",
    "SET #error_class = :class, #error = :message",
    "#state = :quarantined AND #attempt = :attempt AND #error_class = :unknown",
)

# --- the job's own rows -------------------------------------------------------

#: A round's plan is one draft's for good: the first that asks.
ROUND_ADOPT = Statement(
    "round adopt", "SET #draft = :draft", "#state = :planning AND attribute_not_exists(#draft)"
)

#: A job that a release without drafts has begun to plan and of which no task exists.
JOB_ADOPT = Statement(
    "job adopt",
    "SET #draft = :draft, #identity = :identity, #config = :config, #shards = :shards",
    "#state = :planning AND attribute_not_exists(#draft)",
)

ROUND_CURSOR = Statement(
    "round cursor",
    "SET #cursor = :cursor",
    "#state = :planning AND #cursor < :cursor",
)

ROUND_OPEN = Statement(
    "round open",
    "SET #state = :open, #tasks = :tasks, #items = :items, #retried = :retried, #opened = :now",
    "#state = :planning",
)

JOB_OPEN = Statement("job open", "SET #state = :open, #rounds = :rounds", "#rounds < :rounds")

JOB_CONFIG = Statement("job config", "SET #config = :config", "attribute_exists(#pk)")

#: Trip the job's breaker; the first reason stays.
JOB_STOP = Statement(
    "job stop",
    "SET #stop = :reason",
    "attribute_exists(#pk) AND attribute_not_exists(#stop)",
)

#: Nobody leases a task of a paused job; the first who paused it stays.
JOB_PAUSE = Statement(
    "job pause",
    "SET #paused = :who",
    "attribute_exists(#pk) AND attribute_not_exists(#paused)",
)

JOB_RESUME = Statement(
    "job resume",
    "REMOVE #stop, #paused",
    "attribute_exists(#stop) OR attribute_exists(#paused)",
)

#: What anybody knows of old rows is void. It rises each time, whatever the clocks say.
JOB_GENERATION = Statement(
    "job generation",
    "SET #repaired = if_not_exists(#repaired, :now) + :one",
    "attribute_exists(#pk)",
)

#: How far a shard is worked off, within a generation; it only moves on.
MARK = Statement(
    "mark",
    "SET #generation = :generation, #after = :after",
    "attribute_not_exists(#pk) OR #generation < :generation "
    "OR (#generation = :generation AND #after < :after)",
)


@cache
def stage_of(shard: int) -> Statement:
    """What is left of a shard; it only rises. All shards' are in one row, to be read at once."""
    name = stage_name(shard)
    return Statement(
        name, f"SET #{name} = :stage", f"attribute_not_exists(#{name}) OR #{name} < :stage"
    )


def stage_name(shard: int) -> str:
    """The attribute that `stage_of` sets."""
    return f"s{shard}"


#: The token is fixed when the intent is written: it is in the names of the arrays.
SUBMITTED = Statement(
    "submitted",
    "SET #state = :submitted, #slurm_job_ids = :slurm_job_ids, #submitted = :now REMOVE #refused",
    "#token = :token AND (#state = :intent OR #slurm_job_ids = :known)",
)

#: Slurm had no array of this token when it refused one; another caller's may have come since.
SUBMIT_REFUSED = Statement(
    "submit refused", "SET #refused = :yes", "#token = :token AND #state = :intent"
)

#: Who comes after a refusal may want other workers; the token stays.
INTEND_AGAIN = Statement(
    "intend again",
    "SET #workers = :workers, #array_size = :array_size, #asked = :asked, #intent = :now "
    "REMOVE #refused",
    "#token = :token AND #state = :intent AND #refused = :yes",
)

# --- rate limits (GCRA; times in microseconds) --------------------------------

_AS_SEEN = "#epoch = :epoch AND #window = :window AND #used <= :most"

#: Backlogged: the schedule runs ahead of now, so this slice comes after it.
RESERVE_NEXT = Statement(
    "reserve next",
    "SET #tat = #tat + :cost, #used = #used + :charge",
    f"#tat >= :floor AND #tat <= :ceiling AND {_AS_SEEN}",
)

#: Idle: the schedule has fallen behind now by more than the burst, so it starts anew.
RESERVE_NOW = Statement(
    "reserve now",
    "SET #tat = :floor_plus_cost, #used = #used + :charge",
    f"#tat < :floor AND {_AS_SEEN}",
)

#: A new day of a quota; refused means that it has begun.
NEW_WINDOW = Statement("new window", "SET #window = :window, #used = :zero", "#window < :window")

#: Calls that were charged to this day and surely not made. `returns` counts these writes and
#: never falls, so one that is repeated after a lost reply, or arrives late, is refused: use is
#: never counted too low.
RETURN_QUOTA = Statement(
    "return quota",
    "SET #used = #used - :calls, #returned_by = :request, "
    "#returns = if_not_exists(#returns, :zero) + :one",
    "#window = :window AND (attribute_not_exists(#returns) OR #returns = :returns)",
)

#: One cut per window, however many workers saw a 429.
CUT_RATE = Statement(
    "cut rate",
    "SET #rate = :rate, #epoch = #epoch + :one, #changed = :now",
    "#epoch = :epoch AND #changed < :before",
)

RAISE_RATE = Statement(
    "raise rate",
    "SET #rate = :rate, #full = :full, #epoch = #epoch + :one, #changed = :now",
    "#epoch = :epoch AND #changed < :before AND #rate < :cap",
)

#: ``Retry-After``: nobody sends before then.
PUSH_TAT = Statement("push tat", "SET #tat = :tat", "#tat < :tat")

"""Mutants that the simulator does not find, and why: each is argued here, and printed.

`EQUIVALENT` are those that no run can tell from the product. They do not count. `UNREACHED` are
those that only a run could tell that the simulator does not have. They count as not found.

Most conditions say the same thing twice. A condition that is not needed costs nothing, and helps
where a row is not as it should be. So it stays in the product. What makes it needless is a rule of
the rows that `tests.simulator.rules` checks at each write.
"""

from __future__ import annotations

from collections.abc import Iterator

_OF_HOLDER = ("abandon", "crashed", "fail", "heartbeat", "release")
_OF_TOKEN = ("submitted", "submit refused", "intend again")


def _equivalent() -> Iterator[tuple[str, str]]:
    for name in _OF_HOLDER:
        yield (
            f"{name}: without #state = :leased",
            "a row has an owner exactly while it is leased",
        )
    for name in ("abandon", "crashed"):
        yield (
            f"{name}: without #attempt = :attempt",
            "the owner's process is dead and has a name of its own, so all its leases end",
        )
    for name in ("steal", "quarantine"):
        yield (
            f"{name}: without #state = :leased",
            "a row has the end of a lease exactly while it is leased",
        )
        for broken in ("without #lease_until < :dead", "#lease_until <= :dead"):
            yield (
                f"{name}: {broken}",
                "the caller has seen that this lease had ended; another end has another version",
            )
    for name in _OF_TOKEN:
        yield (
            f"{name}: without #token = :token",
            "a submission's token never changes, and each caller has it from the row",
        )
    yield (
        "complete: without #state <> :done OR #winner = :winner",
        "a task has one marker, so that all callers write the same winner",
    )
    for name in ("job stop", "job pause"):
        yield (
            f"{name}: without attribute_exists(#pk)",
            "nothing deletes a job's row, and the caller has read it",
        )
    yield (
        "job resume: no condition",
        "it changes nothing in a job that is not halted, and nobody reads the answer",
    )
    yield (
        "round cursor: without #state = :planning",
        "in a round that is open the cursor is at its end, and can't rise",
    )
    for name, what in (
        ("round cursor: #cursor <= :cursor", "cursor"),
        ("stage: #s <= :stage", "stage"),
        ("push tat: #tat <= :tat", "time"),
    ):
        yield name, f"it writes the {what} that is there, and nobody reads the answer"
    yield (
        "reserve now: #tat <= :floor",
        "at this very microsecond both statements take the same slice",
    )
    for name in ("cut rate", "raise rate"):
        yield (
            f"{name}: #changed <= :before",
            "it differs by one microsecond of a time that clocks do not know as exactly",
        )
    for broken in ("#rate <= :cap", "without #rate < :cap"):
        yield (
            f"raise rate: {broken}",
            "the caller has seen a lower rate, and a rate that was changed has another epoch",
        )
    yield (
        "raise rate: without #changed < :before",
        "the caller has seen that the time of a cut is over; without a cut there is none",
    )
    yield (
        "intend again: without #state = :intent",
        "only an intent is marked as refused, and the mark goes when its arrays are recorded",
    )
    yield (
        "record cause: without #state = :quarantined",
        "what ends a quarantine removes the class: a reopening, or a late commit",
    )


#: The argument, by the mutant's name.
EQUIVALENT: dict[str, str] = dict(_equivalent())

#: Why no run of the simulator differs, by the mutant's name.
UNREACHED: dict[str, str] = {
    "reopen: without #attempt = :attempt": (
        "a slow call of an earlier round has to put the task back, and it has to fail again, "
        "between the read and the write of a later round's call"
    ),
    "round adopt: without #state = :planning": (
        "an open round without a draft was planned by an older release, or rebuilt without its "
        "segments; no run has one while another call adopts a draft"
    ),
    "job adopt: without #state = :planning": (
        "an open job without a draft was planned by an older release; no run has one while "
        "another call adopts a plan"
    ),
    "job open: #rounds <= :rounds": (
        "its answer tells whether a task was put back behind the workers; the next submit makes "
        "them look again, too"
    ),
    "cut rate: without #epoch = :epoch": (
        "another change of the rate has also renewed its time, unless clocks differ by more than "
        "the ten seconds of a cut"
    ),
}

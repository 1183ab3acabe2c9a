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
    yield (
        "raise rate: #rate <= :cap",
        "a rate that has reached the cap since it was read has another epoch",
    )


#: The argument, by the mutant's name.
EQUIVALENT: dict[str, str] = dict(_equivalent())

#: Why no run of the simulator differs, by the mutant's name.
UNREACHED: dict[str, str] = {
    **{
        f"{name}: without #owner = :owner": (
            "only a row that was lost and made again gives the number of an attempt to two owners, "
            "and no simulated backfill loses rows"
        )
        for name in ("abandon", "crashed")
    },
    "decide: without attribute_exists(#pk)": (
        "no row is lost where the store does not heed If-None-Match"
    ),
    "cut rate: without #epoch = :epoch": (
        "another change of the rate has also renewed its time, unless clocks differ by more than "
        "the ten seconds of a cut"
    ),
}

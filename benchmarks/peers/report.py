"""The runs as one table in Markdown; pure functions of the reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.peers.running import Report

OURS = "ours"
FLOOR = "plain loop"
_COLUMNS = (
    "who",
    "start-up, s",
    "steady, items/s",
    "total, items/s",
    "driver, MB",
    "worker, MB",
    "worker killed: missing / twice / run again, s",
    "driver killed: missing / twice / run again, s",
)
_ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Measure:
    """What contenders are compared by, and why a peer may be ahead in it.

    Args:
        name: of the measure.
        of: its value in a run.
        unit: after the value.
        more_is_better: or less.
        reason: where a peer is ahead.
    """

    name: str
    of: Callable[[Report], float]
    unit: str
    more_is_better: bool
    reason: str


MEASURES = (
    Measure(
        "start-up",
        lambda each: each.pace.start_up_s,
        " s",
        False,
        "Ours writes a plan of all items to S3 and the table, and ships the worker, before it "
        "submits; that is what a driver that dies is not needed for. Taken apart, in a run of "
        "5 s: 1 was imports, 1 planning, half a second building the worker's file, "
        "and 1.5 from sbatch to the worker's first line.",
    ),
    Measure(
        "steady rate",
        lambda each: each.pace.steady,
        " items/s",
        True,
        "Each bundle of ours is leased, uploaded and committed by requests, which the emulators "
        "answer on the workers' own cores; the peers write a file. Two plain loops would be little "
        "faster. Tried without gain: threads switched every 0.5 ms instead of 5 ms.",
    ),
    Measure(
        "total rate",
        lambda each: each.pace.total,
        " items/s",
        True,
        "It is the start-up and the last look at the job, which a longer job has once.",
    ),
    Measure(
        "memory of the driver",
        lambda each: each.driver_mb,
        " MB",
        False,
        "Ours holds clients of AWS and of SSH.",
    ),
    Measure(
        "memory of a worker",
        lambda each: each.worker_mb or math.nan,
        " MB",
        False,
        "Ours holds a client of AWS; theirs writes to a shared folder.",
    ),
)


def table(reports: Sequence[Report]) -> list[str]:
    """A line per contender, in the order in which they were run."""
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
    for who in dict.fromkeys(each.who for each in reports):
        of = {each.killed: each for each in reports if each.who == who}
        whole = of.get("nobody")
        cells = [_ABSENT] * 5
        if whole is not None:
            cells = [
                _number(whole.pace.start_up_s, 1),
                _number(whole.pace.steady, 0),
                _number(whole.pace.total, 0),
                _number(whole.driver_mb, 0),
                _number(whole.worker_mb or math.nan, 0),
            ]
        lines.append(_line([who, *cells, _after(of.get("worker")), _after(of.get("driver"))]))
    return lines


def ahead(reports: Sequence[Report]) -> list[str]:
    """Where a peer is ahead of ours, and why; the floor is left out, as it has no cluster."""
    whole = {each.who: each for each in reports if each.killed == "nobody"}
    if OURS not in whole:
        return []
    lines = []
    for measure in MEASURES:
        own = measure.of(whole[OURS])
        better = {
            who: value
            for who, each in whole.items()
            if who not in (OURS, FLOOR) and _is_better(value := measure.of(each), own, measure)
        }
        if better:
            said = ", ".join(f"{who} {value:,.4g}{measure.unit}" for who, value in better.items())
            lines.append(
                f"- {measure.name}: ours {own:,.4g}{measure.unit}, {said}. {measure.reason}"
            )
    return lines


def problems(reports: Sequence[Report]) -> list[str]:
    """What went otherwise than a run should."""
    return [
        f"- {each.who}, {each.killed} killed: {each.problem}." for each in reports if each.problem
    ]


_HEAD = """## Beside other tools

Measured on {machine}, {date}, by `make bench-peers`:
{sizes} items in bundles of 500, two workers of one CPU on the
same Slurm cluster, a handler that waits 1 ms. Each has a bundle's results on disk (written aside,
fsynced, renamed), or in S3, and skips what is there when it is started again.

{table}

Start-up is from the command to the first bundle's result, steady from the first to the last, total
from the command until all is durable. With a kill -9 half-way, of the process that runs the handler
(nobody intervenes) or of the driver (the same command is given again): items without a result
(and then, once the command was given again), items in the results twice, items whose handler ran
more than once, and seconds until all was done. A star: see what went wrong.

### Where a peer is ahead

{ahead}
{problems}
### How each was set up

{notes}
"""


def markdown(
    reports: Sequence[Report],
    notes: Mapping[str, str],
    versions: Mapping[str, Sequence[str]],
    machine: str,
    date: str,
) -> str:
    """The whole page.

    Args:
        reports: of the runs.
        notes: how each contender was set up, and who is ``absent``.
        versions: packages of those that have some.
        machine: where it was.
        date: when.
    """
    sizes = sorted({each.items for each in reports}, reverse=True)
    set_up = []
    for who in dict.fromkeys(each.who for each in reports):
        pinned = f" ({', '.join(versions[who])})" if versions.get(who) else ""
        set_up.append(f"- **{who}**{pinned}: {notes[who]}")
    wrong = problems(reports)
    return _HEAD.format(
        machine=machine,
        date=date,
        sizes=" and (with a kill) ".join(f"{size:,}" for size in sizes),
        table="\n".join(table(reports)),
        ahead="\n".join(ahead(reports) or ["In none of these measures, in this run."]),
        problems="\n".join(["", "### What went wrong", "", *wrong, ""]) if wrong else "",
        notes="\n".join([*set_up, f"- {notes['absent']}"]),
    )


def _is_better(value: float, own: float, measure: Measure) -> bool:
    if math.isnan(value) or math.isnan(own):
        return False
    return value > own if measure.more_is_better else value < own


def _after(report: Report | None) -> str:
    if report is None:
        return _ABSENT
    counts = report.counts
    missing = f"{counts.missing:,}"
    if report.missing_again is not None:
        missing += f" (then {report.missing_again:,})"
    mark = "*" if report.problem else ""
    return f"{missing} / {counts.doubled:,} / {counts.redone:,}, {report.took_s:.0f} s{mark}"


def _number(value: float, digits: int) -> str:
    return _ABSENT if math.isnan(value) else f"{value:,.{digits}f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

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
    "worker killed: missing / doubled / rerun, time",
    "driver killed: missing / doubled / rerun, time",
)
_ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure of the comparison, and why a peer may be ahead in it.

    Args:
        name: of the measure.
        of: its value in a run.
        unit: after the value.
        more_is_better: or less.
        reason: why a peer may be ahead.
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
        "Before it submits, ours writes a plan of all items to S3 and the table, and uploads the "
        "worker. Because of this plan the run survives the death of its driver. In a run of 5 s, "
        "imports took 1 s, planning 1 s, and building the worker's file 0.5 s. From sbatch to the "
        "worker's first line it took 1.5 s.",
    ),
    Measure(
        "steady rate",
        lambda each: each.pace.steady,
        " items/s",
        True,
        "Ours leases, uploads and commits each bundle by requests, and the emulators answer these "
        "on the same cores as the workers. The peers write a file. Two plain loops would be only "
        "slightly faster. Switching threads every 0.5 ms instead of 5 ms brought no gain.",
    ),
    Measure(
        "total rate",
        lambda each: each.pace.total,
        " items/s",
        True,
        "The difference is the start-up and the last check of the job. A longer job also has "
        "these only once.",
    ),
    Measure(
        "memory of the driver",
        lambda each: each.driver_mb,
        " MB",
        False,
        "Ours loads clients for AWS and SSH.",
    ),
    Measure(
        "memory of a worker",
        lambda each: each.worker_mb or math.nan,
        " MB",
        False,
        "Ours loads a client for AWS; the others write to a shared folder.",
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
    """Where a peer is ahead of ours, and why; without the plain loop, which uses no cluster."""
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
    """What went wrong in the runs."""
    return [
        f"- {each.who}, {each.killed} killed: {each.problem}." for each in reports if each.problem
    ]


_HEAD = """## Beside other tools

`make bench-peers` measured these figures on {machine}, {date}.
Each run has {sizes} items in bundles of 500, and two workers with one CPU
each on the same Slurm cluster. The handler waits 1 ms. Each tool writes the results of a bundle to
disk (to a temporary file, then fsync and rename) or to S3. When it is started again, it skips
bundles that have results.

{table}

Start-up is the time from the command to the first result of a bundle. The steady rate is from the
first result to the last, and the total rate is from the command until all results are durable.

In the runs with a kill, a kill -9 ends a process when half of the items are done. It ends either
the process that runs the handler (then nobody intervenes) or the driver (then the same command is
run again). The columns show:

- missing: items without a result (in brackets: after the command was run again);
- doubled: items that are twice in the results;
- rerun: items whose handler ran more than once;
- time: the seconds until the run was done.

A star means that something went wrong, as listed below.

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
        notes: how each contender was set up; under ``absent``, the tool that is left out.
        versions: packages of those that have some.
        machine: where the runs were made.
        date: the day of the runs.
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
        ahead="\n".join(
            ahead(reports) or ["In this run, no peer is ahead in any of these measures."]
        ),
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

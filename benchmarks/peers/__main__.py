"""Compare ours with other tools, on the same Slurm cluster and the same items.

python -m benchmarks.peers [--short] [--only NAME] [--write]       (make stack-up first)
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.__main__ import machine
from benchmarks.pages import written
from benchmarks.peers import engine, report
from benchmarks.peers.contenders import PEERS, Contender, Peer
from benchmarks.peers.ours import Ours
from benchmarks.peers.running import Report, run
from tests.stack.settings import ROOT
from tests.stack.state_folder import state_folder

REPORTS = state_folder(ROOT) / "peers" / "reports.jsonl"
#: The whole section is written to the first page, its table to both.
RESULTS, README = Path(__file__).parents[1] / "RESULTS.md", ROOT / "README.md"
ITEMS, SHORT_ITEMS = 40_000, 8_000
#: A run with a kill has this fraction (1/n) of the items.
_KILLED_SHARE = 4
ABSENT = (
    "**HyperQueue** is left out: its package on PyPI (0.27.0) runs a server and workers in one "
    "process on this machine, and does not include the `hq` program, which starts workers in Slurm "
    "jobs."
)
#: These are also killed in the short form.
_KILLED_IN_SHORT = ("ours", "dask-jobqueue")


def plan(
    contenders: Sequence[Contender], items: int, *, short: bool
) -> list[tuple[Contender, str, int]]:
    """The runs: contender, process to kill, and number of items, which is smaller with a kill."""
    runs = []
    for each in contenders:
        runs.append((each, "nobody", items))
        if not short or each.name in _KILLED_IN_SHORT:
            runs += [(each, killed, items // _KILLED_SHARE) for killed in each.kills]
    return runs


def chosen(names: Sequence[str]) -> list[Contender]:
    """The contenders of these names, or all.

    Raises:
        SystemExit: if a name is unknown.
    """
    every: list[Contender] = [PEERS[0], Ours(), *PEERS[1:]]
    known = {each.name: each for each in every}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"peers: --only {unknown[0]!r} is unknown; use one of {', '.join(known)}")
    return [known[name] for name in names] if names else every


def kept() -> list[Report]:
    """The latest report of each kind of run, from all runs on this machine."""
    lines = REPORTS.read_text().splitlines() if REPORTS.exists() else []
    found = [Report.from_dict(json.loads(line)) for line in lines]
    return list({(each.who, each.killed): each for each in found}.values())


def compare(contenders: Sequence[Contender], items: int, *, short: bool) -> list[Report]:
    """Run all, one after the other; write each report to REPORTS at once."""
    REPORTS.parent.mkdir(parents=True, exist_ok=True)
    for each in contenders:
        say(f"preparing {each.name}")
        each.prepare()
    found = []
    for contender, killed, count in plan(contenders, items, short=short):
        say(f"{contender.name}: {count:,} items, {killed} killed")
        found.append(run(contender, count, killed, say))
        line = json.dumps(found[-1].to_dict())
        say(line)
        with REPORTS.open("a") as file:
            file.write(f"{line}\n")
    return found


def say(line: str) -> None:
    """Print to stderr, so that stdout has only the table."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Run, print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer items, fewer kills; 3 minutes")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="repeatable")
    parser.add_argument("--items", type=int, metavar="N", help=f"instead of {ITEMS:,}")
    parser.add_argument("--write", action="store_true", help="write README and RESULTS.md")
    parser.add_argument(
        "--kept", action="store_true", help="run nothing; print the table of past runs"
    )
    parser.add_argument("--engine", action="store_true", help="only the no-op engines, as JSON")
    arguments = parser.parse_args()
    # Started processes end together with this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("peers: ended by SIGTERM"))
    if "SLURM_CONF" not in os.environ:
        raise SystemExit("peers: Slurm is not up; run make stack-up, then make bench-peers")
    if arguments.engine:
        print(json.dumps([asdict(each) for each in engine.figures(short=arguments.short)]))
        return
    contenders = chosen(arguments.only)
    if arguments.kept:
        known = kept()
        reports = [each for who in contenders for each in known if each.who == who.name]
    else:
        items = arguments.items or (SHORT_ITEMS if arguments.short else ITEMS)
        reports = compare(contenders, items, short=arguments.short)
    text = report.markdown(
        reports,
        {**{each.name: each.note for each in contenders}, "absent": ABSENT},
        {each.name: each.packages for each in contenders if isinstance(each, Peer)},
        machine(),
        time.strftime("%Y-%m-%d"),
    )
    print(text)
    if arguments.write:
        for page, lines in ((RESULTS, text.splitlines()), (README, report.table(reports))):
            page.write_text(written(page.read_text(), {"peers": lines}))


if __name__ == "__main__":
    main()

"""Ratios of a run of the benchmarks against the committed ones.

Rates depend on the machine. A ratio against a baseline of the same run depends on the code, and can
be compared from one day to the next. `make bench` writes the ratios beside the table. `make
bench-guard` measures again and prints one line for each ratio that is worse.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine import Figure

RATIOS = Path(__file__).with_name("results.json")
TOLERANCE = 0.15
#: Tolerances by the first words of a name, where two runs on one machine differ more, or less.
TOLERANCES = {
    # Small counts of a simulation with a fixed seed: 5 failed claims or 7.
    "claims: ": 0.5,
    "latency hiding": 0.05,
    "memory: ": 0.1,
    # Starts of processes, on a machine that also does other work.
    "slurmctl ": 0.3,
    "start of worker.pyz": 0.3,
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure's ratio.

    Args:
        ratio: measured against baseline.
        at_least: whether more is better.
    """

    name: str
    ratio: float
    at_least: bool

    @property
    def tolerance(self) -> float:
        """The share by which it may become worse."""
        found = (each for name, each in TOLERANCES.items() if self.name.startswith(name))
        return next(found, TOLERANCE)

    def worse_by(self, ratio: float) -> float:
        """The share by which another ratio is worse; below 0 if it is better."""
        change = ratio / self.ratio - 1 if self.ratio else float(ratio > 0)
        return -change if self.at_least else change


def of_figures(figures: Iterable[Figure]) -> list[Ratio]:
    """The ratios of the figures, as they are stored."""
    return [Ratio(each.name, round(each.ratio, 4), each.at_least) for each in figures]


def write(figures: Iterable[Figure], path: Path = RATIOS) -> None:
    """Write the ratios, one per line, so that a diff shows each change."""
    rows = [
        json.dumps({"name": each.name, "ratio": each.ratio, "at_least": each.at_least})
        for each in of_figures(figures)
    ]
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n")


def read(path: Path = RATIOS) -> list[Ratio]:
    """Read what `write` wrote."""
    return [Ratio(**each) for each in json.loads(path.read_text())]


def worse(committed: Iterable[Ratio], measured: Iterable[Ratio]) -> list[str]:
    """A line for each ratio that is worse by more than its tolerance."""
    new = {each.name: each.ratio for each in measured}
    return [
        f"{each.name}: ratio {new[each.name]:.3g}, was {each.ratio:.3g}: "
        f"{by:.0%} worse, {each.tolerance:.0%} is tolerated"
        for each in committed
        if each.name in new and (by := each.worse_by(new[each.name])) > each.tolerance
    ]


def left_out(committed: Iterable[Ratio], measured: Iterable[Ratio]) -> list[str]:
    """Names of committed ratios that the run has not measured."""
    new = {each.name for each in measured}
    return [each.name for each in committed if each.name not in new]

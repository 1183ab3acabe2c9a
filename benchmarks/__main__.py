"""All benchmarks of the worker, as one table in ``benchmarks/RESULTS.md``.

python -m benchmarks [--short] [--only PART] [--guard] [--peers FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import claims, engine, guard, limiter, startup
from benchmarks.engine import Figure
from benchmarks.pages import kept

RESULTS = Path(__file__).with_name("RESULTS.md")


def machine() -> str:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    cores = sum(
        line.startswith("processor") for line in Path("/proc/cpuinfo").read_text().splitlines()
    )
    return f"{cores} cores of {model}, Python {platform.python_version()}"


def mark(met: bool) -> str:
    return "met" if met else "**not met**"


def line(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def figure_lines(figures: Iterable[Figure]) -> list[str]:
    return [
        line(
            each.name,
            each.measured,
            each.baseline,
            f"{each.ratio:.2f}" if each.ratio >= 0.01 else f"{each.ratio:.2g}",
            f"{'≥' if each.at_least else '≤'} {each.target:g}",
            mark(each.met),
        )
        for each in figures
    ]


def claim_figures(*, short: bool) -> list[Figure]:
    figures = []
    for each in claims.figures(short=short):
        failed = each["failed_claims_per_claim"]
        writes = each["most_writes_of_a_shard_per_s"]
        reads = each["most_read_units_of_a_shard_per_s"]
        name = f"{each['workers']:,} workers, {each['tasks']:,} tasks, {each['shards']} shards"
        figures += [
            _at_most(f"claims: {name}", f"{failed} failed", "1 claim", failed, 0.05),
            _at_most(
                f"busiest shard: {name}",
                f"{writes} writes, {reads} read units per s",
                "1,000 and 3,000 of a partition",
                max(writes / claims.WRITE_LIMIT, reads / claims.READ_LIMIT),
                1.0,
            ),
        ]
    return figures


def limiter_figures(*, short: bool) -> list[Figure]:
    figures = []
    for each in limiter.figures(short=short):
        name = f"rate limit: {each['workers']:,} workers at {limiter.RATE:g}/s"
        used, writes = each["used"], each["writes_per_token"]
        figures += [
            Figure(f"{name}, share used", str(used), "the rate", used, 0.93),
            _at_most(f"{name}, writes", str(writes), "1 token", writes, 1.4),
        ]
        for window in (1, 10):
            most, allowed = each[f"most_in_{window}_s"], each[f"bound_in_{window}_s"]
            figures.append(
                _at_most(
                    f"{name}, most in {window} s",
                    str(most),
                    f"bound {allowed}",
                    most / allowed,
                    1.0,
                )
            )
    return figures


def _at_most(name: str, measured: str, baseline: str, ratio: float, target: float) -> Figure:
    return Figure(name, measured, baseline, ratio, target, at_least=False)


#: The parts, by their name in `--only`.
PARTS: dict[str, Callable[..., list[Figure]]] = {
    "engine": engine.figures,
    "startup": startup.figures,
    "claims": claim_figures,
    "limits": limiter_figures,
}


def measure(parts: Iterable[str], *, short: bool) -> dict[str, list[Figure]]:
    """The figures of these parts."""
    return {name: PARTS[name](short=short) for name in PARTS if name in parts}


def table(figures: Iterable[Figure]) -> str:
    lines = [
        "# Results",
        "",
        f"`make bench` measured these figures on {machine()}. Each ratio is against a baseline",
        "of the same run. Claims and rate limits are simulated with the real code, at 8 ms per",
        "request.",
        "",
        "| what | measured | baseline | ratio | target | |",
        "| --- | --- | --- | --- | --- | --- |",
        *figure_lines(figures),
    ]
    return "\n".join(lines) + "\n"


def guarded(figures: list[Figure], committed: list[guard.Ratio]) -> int:
    """Print the ratios that are worse than the committed ones; return the exit code."""
    measured = guard.of_figures(figures)
    for name in guard.left_out(committed, measured):
        print(f"not compared: {name}")
    worse = guard.worse(committed, measured)
    for text in worse:
        print(f"worse: {text}")
    return 1 if worse else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="small sizes; print, write nothing")
    parser.add_argument("--peers", type=Path, help="the output of benchmarks.peers --engine")
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; write nothing")
    parser.add_argument("--guard", action="store_true", help="compare, and write nothing")
    arguments = parser.parse_args(argv)
    if arguments.guard and arguments.short:
        parser.error("--guard compares ratios at full size; omit --short")
    found = measure(arguments.only or PARTS, short=arguments.short)
    peers = json.loads(arguments.peers.read_text()) if arguments.peers else []
    figures = [
        *found.pop("engine", []),
        *(Figure(**each) for each in peers),
        *(each for part in found.values() for each in part),
    ]
    text = table(figures)
    print(text)
    if arguments.guard:
        return guarded(figures, guard.read())
    if not arguments.short and not arguments.only:
        standing = RESULTS.read_text() if RESULTS.exists() else ""
        RESULTS.write_text(f"{text}\n{kept(standing, 'peers')}\n")
        guard.write(figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())

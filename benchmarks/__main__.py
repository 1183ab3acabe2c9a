"""All benchmarks of the worker, as one table in ``benchmarks/RESULTS.md``.

python -m benchmarks [--short] [--peers FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterable
from pathlib import Path

from benchmarks import claims, engine, limiter, startup
from benchmarks.engine import Figure

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
            f"{each.ratio:.2f}",
            f"{'≥' if each.at_least else '≤'} {each.target:g}",
            mark(each.met),
        )
        for each in figures
    ]


def claim_lines(*, short: bool) -> list[str]:
    lines = []
    for each in claims.figures(short=short):
        failed = each["failed_claims_per_claim"]
        writes = each["most_writes_of_a_shard_per_s"]
        reads = each["most_read_units_of_a_shard_per_s"]
        within = writes < claims.WRITE_LIMIT and reads < claims.READ_LIMIT
        name = f"{each['workers']:,} workers, {each['tasks']:,} tasks, {each['shards']} shards"
        lines += [
            line(
                f"claims: {name}",
                f"{failed} failed",
                "1 claim",
                failed,
                "≤ 0.05",
                mark(failed <= 0.05),
            ),
            line(
                f"busiest shard: {name}",
                f"{writes} writes, {reads} read units per s",
                "1,000 and 3,000 of a partition",
                f"{max(writes / claims.WRITE_LIMIT, reads / claims.READ_LIMIT):.2f}",
                "≤ 1",
                mark(within),
            ),
        ]
    return lines


def limiter_lines(*, short: bool) -> list[str]:
    lines = []
    for each in limiter.figures(short=short):
        name = f"rate limit: {each['workers']:,} workers at {limiter.RATE:g}/s"
        used, writes = each["used"], each["writes_per_token"]
        most, allowed = each["most_in_1_s"], each["bound_in_1_s"]
        within = all(each[f"most_in_{w}_s"] <= each[f"bound_in_{w}_s"] for w in (1, 10))
        lines += [
            line(f"{name}, share used", used, "the rate", used, "≥ 0.93", mark(used >= 0.93)),
            line(f"{name}, writes", writes, "1 token", writes, "≤ 1.4", mark(writes <= 1.4)),
            line(
                f"{name}, most in 1 s",
                most,
                f"bound {allowed}",
                f"{most / allowed:.2f}",
                "≤ 1",
                mark(within),
            ),
        ]
    return lines


def table(peers: list[Figure], *, short: bool) -> str:
    lines = [
        "# Results",
        "",
        f"Measured on {machine()}, by `make bench`. Each ratio is against a baseline of the same",
        "run; claims and rate limits are simulated over the real code with 8 ms per request.",
        "",
        "| what | measured | baseline | ratio | target | |",
        "| --- | --- | --- | --- | --- | --- |",
        *figure_lines(engine.figures(short=short)),
        *figure_lines(peers),
        *figure_lines(startup.figures(short=short)),
        *claim_lines(short=short),
        *limiter_lines(short=short),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="small sizes; print, write nothing")
    parser.add_argument("--peers", type=Path, help="what benchmarks.peers has printed")
    arguments = parser.parse_args()
    measured = json.loads(arguments.peers.read_text()) if arguments.peers else []
    text = table([Figure(**each) for each in measured], short=arguments.short)
    print(text)
    if not arguments.short:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()

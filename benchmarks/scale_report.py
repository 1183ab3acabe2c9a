"""The generated sections of docs/scale.md, from what the benchmarks have written.

make scale-report         (measures and simulates first; about an hour)
python -m benchmarks.scale_report        (only writes the sections)
"""

from __future__ import annotations

from pathlib import Path

from airflow_slurm_provider.coordinator.costs.prices import PRICES_OF, REGION
from benchmarks import cost, growth
from benchmarks.__main__ import machine
from benchmarks.billion import __main__ as billion
from benchmarks.billion.aws import SOURCES, SOURCES_OF
from benchmarks.billion.report import (
    Outcome,
    load_table,
    preemption_table,
    settings_table,
    sizes_table,
)
from benchmarks.five_million.__main__ import RESULT
from benchmarks.pages import written

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


def sections() -> dict[str, list[str]]:
    """Markdown by the section's name, for each section that has figures."""
    found: dict[str, list[str]] = {}
    if RESULT.exists():
        found["five-million"] = RESULT.read_text().splitlines()[2:]
    if growth.CSV.exists():
        costs = growth.read_csv(growth.CSV)
        found["growth"] = [
            f"![Cost of each operation by items]({growth.PLOT.relative_to(PAGE.parent)})",
            "",
            *growth.table(costs),
            "",
            "All figures: [growth.csv](../benchmarks/growth.csv).",
        ]
        steep = growth.too_steep(costs)
        found["growth"] += ["", *(f"**{line}**" for line in steep)] if steep else []
    if billion.RESULTS.exists():
        found |= simulated(billion.read_results())
    found["cost"] = cost.section()
    found["sources"] = [f"{number}. {source}" for number, source in enumerate(SOURCES, 1)] + [
        "",
        f"Read on {SOURCES_OF}. Prices: list prices of {REGION} of {PRICES_OF}.",
    ]
    return found


def simulated(results: dict[str, list[Outcome]]) -> dict[str, list[str]]:
    """The sections about simulated jobs."""
    found: dict[str, list[str]] = {}
    if sizes := results.get("sizes"):
        cpu_s = sum(each.cpu_s for group in results.values() for each in group)
        found["sizes"] = [
            *sizes_table(sizes),
            "",
            *load_table(sizes),
            "",
            f"These simulations took {cpu_s / 60:.0f} minutes of CPU time ({machine()}).",
        ]
    if settings := results.get("settings"):
        found["settings"] = settings_table(settings)
    if preempted := results.get("preemption"):
        found["preemption"] = preemption_table(preempted)
    return found


def main() -> None:
    """Write the page."""
    PAGE.write_text(written(PAGE.read_text(), sections()))


if __name__ == "__main__":
    main()

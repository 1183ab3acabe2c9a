"""Text can be read on its ground, in light and in dark: WCAG AA."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SHEET = (
    Path(__file__).resolve().parents[3] / "airflow_slurm_provider/dashboard/static/app.css"
).read_text()
SETS = {
    name: dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for name, block in zip(
        ("light", "dark"), re.findall(r":root[^{]*\{([^}]*)\}", SHEET)[:2], strict=True
    )
}
TEXT = [
    *((text, ground) for text in ("text", "muted") for ground in ("ground", "surface", "sunken")),
    *((text, f"{soft}-soft") for text in ("text", "muted") for soft in ("warn", "fail")),
    *((name, f"{name}-soft") for name in ("ok", "fail", "warn", "accent")),
    *((name, "surface") for name in ("accent", "fail")),
    ("accent", "ground"),
    ("on-accent", "accent"),
    ("fail", "sunken"),
]
#: What only has to be told apart: borders of controls, parts of charts and bars.
MARKS = ["line-strong", "ok", "fail", *(f"c{number}" for number in range(1, 9))]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("text", "ground"), TEXT)
def test_text_has_enough_contrast(name: str, text: str, ground: str) -> None:
    assert contrast(SETS[name][text], SETS[name][ground]) >= 4.5


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("mark", MARKS)
def test_marks_have_enough_contrast(name: str, mark: str) -> None:
    assert contrast(SETS[name][mark], SETS[name]["surface"]) >= 3


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.2, of 1 to 21."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue

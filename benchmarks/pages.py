"""Sections of pages that benchmarks write: from `<!-- NAME: begin -->` to `<!-- NAME: end -->`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


def written(page: str, found: Mapping[str, Sequence[str]]) -> str:
    """The page with these lines in these sections.

    Raises:
        ValueError: if the page has no place for one of them.
    """
    for name, lines in found.items():
        text = "\n".join([f"<!-- {name}: begin -->", "", *lines, "", f"<!-- {name}: end -->"])
        if not (pattern := _pattern(name)).search(page):
            raise ValueError(f"the page has no section {name!r}")
        page = pattern.sub(lambda _, text=text: text, page)
    return page


def kept(page: str, name: str) -> str:
    """A section of the page, unchanged and with its markers; empty markers if there is none."""
    found = _pattern(name).search(page)
    return found[0] if found else f"<!-- {name}: begin -->\n<!-- {name}: end -->"


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(f"<!-- {re.escape(name)}: begin -->.*?<!-- {re.escape(name)}: end -->", re.S)

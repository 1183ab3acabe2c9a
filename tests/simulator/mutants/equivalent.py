"""Mutants that no run can tell from the product, and why: each is argued here, and printed."""

from __future__ import annotations

#: The argument, by the mutant's name.
EQUIVALENT: dict[str, str] = {}

"""What several end-to-end tests need and no fixture gives."""

from __future__ import annotations

from collections.abc import Callable

from tests.stack.process import wait_until


def until(happens: Callable[[], object], what: str, seconds: float = 120.0) -> None:
    """Look at it, again and again; it must happen in time."""
    in_time = wait_until(happens, seconds, every=0.5)
    assert in_time, f"{what}: did not come about in {seconds:g} s"

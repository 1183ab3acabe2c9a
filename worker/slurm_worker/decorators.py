"""Decorators for a handler's author; imports nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
BATCH_MARK = "__slurm_worker_batch__"


def batch(size: int = 100) -> Callable[[F], F]:
    """Mark a handler that takes a list of up to `size` items and returns as many results.

    An exception in place of a result fails only that item. A wrong `size` is a ValueError.
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError("batch: size must be a positive number of items; write @batch(size=100)")

    def mark(function: F) -> F:
        setattr(function, BATCH_MARK, size)
        return function

    return mark

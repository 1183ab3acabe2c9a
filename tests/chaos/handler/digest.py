"""The handler of a chaos job: its outcome is a pure function of the item, so it can be checked."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from slurm_worker.errors import ErrorClass, ItemError

#: One item in this many fails, so that failures are counted too.
FAILS_EVERY = 97


def handle(item: dict[str, Any], context: Any) -> dict[str, str]:
    """The digest of the item's key, after the time that a real item would take."""
    time.sleep(context.params["seconds"])
    key = str(item["key"])
    if fails(key):
        raise ItemError(ErrorClass.BAD_INPUT, "this item always fails")
    return {"value": value_of(key)}


def value_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def fails(key: str) -> bool:
    return int(value_of(key)[:8], 16) % FAILS_EVERY == 0

"""The handler of a chaos job: its outcome is known for each item, so it can be checked."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from slurm_worker.errors import ErrorClass, ItemError

#: One item in this many always fails, so that failures are counted too.
FAILS_EVERY = 97
#: One item in this many fails until there is a cure, so that there is something to retry.
CURABLE_EVERY = 8
#: A cured item takes so many times longer, so that a retry round of few items has a length.
_CURED_TAKES = 4


def handle(item: dict[str, Any], context: Any) -> dict[str, str]:
    """The digest of the item's key, after the time that a real item would take."""
    key, seconds = str(item["key"]), context.params["seconds"]
    cured = Path(context.params["cure"]).exists()
    time.sleep(seconds * _CURED_TAKES if cured and is_curable(key) else seconds)
    if fails(key):
        raise ItemError(ErrorClass.BAD_INPUT, "this item always fails")
    if is_curable(key) and not cured:
        raise ItemError(ErrorClass.NETWORK, "this item fails until there is a cure")
    return {"value": value_of(key)}


def value_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def fails(key: str) -> bool:
    return _number(key) % FAILS_EVERY == 0


def is_curable(key: str) -> bool:
    return not fails(key) and _number(key) % CURABLE_EVERY == 0


def _number(key: str) -> int:
    return int(value_of(key)[:8], 16)

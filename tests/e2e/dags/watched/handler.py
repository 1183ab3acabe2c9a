"""Items that take the time they say; some fail until a file is there."""

from __future__ import annotations

import pathlib
import time
from typing import Any

from slurm_worker.errors import ItemError


def handle(item: dict[str, Any], context: Any) -> dict[str, Any]:
    time.sleep(item["s"])
    if item["fails"] and not pathlib.Path(context.params["cure"]).exists():
        raise ItemError("network", f"connection of {item['id']} reset")
    return {"id": item["id"]}

"""Takes as long as each item says, or until its gate is there."""

import time
from pathlib import Path

LONGEST_S = 600.0


def handle(item, context):
    time.sleep(item.get("seconds", 0.0))
    deadline = time.monotonic() + LONGEST_S
    while "gate" in item and not Path(item["gate"]).exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    return {"id": item["id"]}

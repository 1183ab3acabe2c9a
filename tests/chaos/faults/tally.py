"""Faults by kind: counted, and written to a log with a JSON line for each."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from pathlib import Path


class Tally:
    """Counts the faults of a round; safe to share between threads.

    Args:
        log: where each fault is written.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, **details: object) -> None:
        """Count a fault that has just happened."""
        line = json.dumps({"t": round(time.time(), 3), "kind": kind, **details})
        with self._lock:
            self.counts[kind] += 1
            with self._log.open("a") as log:
                log.write(f"{line}\n")

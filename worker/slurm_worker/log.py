"""JSON logs: one object a line, with job, task, attempt, worker and Slurm ids on each.

The stream goes to stderr (Slurm's output file) and to a file on scratch, which is
shipped to S3 when the worker ends.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from pathlib import Path

LOGGER = "slurm_worker"
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one JSON object; what was passed as `extra` becomes fields."""

    def __init__(self, ids: dict[str, object]) -> None:
        super().__init__()
        #: Shared by all lines; the worker changes `task` and `attempt` as it goes on.
        self.ids = ids

    def format(self, record: logging.LogRecord) -> str:
        """Render the record."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **self.ids,
        }
        line.update((k, v) for k, v in record.__dict__.items() if k not in _STANDARD)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def start_logging(ids: dict[str, object], path: Path) -> logging.Logger:
    """Send the worker's and the handler's logs to stderr and `path`, as JSON with `ids`."""
    formatter = JsonFormatter(ids)
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for old in list(logger.handlers):
        logger.removeHandler(old)
    for handler in (logging.StreamHandler(sys.stderr), logging.FileHandler(path)):
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    return logger

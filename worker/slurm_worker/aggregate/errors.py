"""What can be wrong with the results of a job, or with files to merge."""

from __future__ import annotations

from slurm_worker.errors import UserError


class AggregationError(UserError):
    """The results can't be merged as they are; the message says what is wrong and what to do."""


class Misfit(Exception):
    """A value does not fit its column; the caller adds which item has it.

    `path` is the column, and the path inside it; `found` is read after "has" or "holds".
    """

    def __init__(self, path: str, found: str) -> None:
        super().__init__(f"{path}: {found}")
        self.path = path
        self.found = found


def one_line(error: BaseException) -> str:
    """An error's text as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]

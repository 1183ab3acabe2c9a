"""What can be wrong with the results of a job."""

from __future__ import annotations

from slurm_worker.errors import UserError


class AggregationError(UserError):
    """The results can't be published as they are; the message says which and what to do."""


class Misfit(Exception):
    """A value does not fit its column; caught and told with its item's key.

    Args:
        path: the column, and the way to the value inside it.
        found: what was found there, to read after "has" or "holds".
    """

    def __init__(self, path: str, found: str) -> None:
        super().__init__(f"{path}: {found}")
        self.path = path
        self.found = found

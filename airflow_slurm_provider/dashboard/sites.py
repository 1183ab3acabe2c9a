"""Which sites a dashboard shows, and their services."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.errors import UserError


class SitesSource(Protocol):
    """Gives services to requests, which name a site by ``?conn=``."""

    def names(self) -> Sequence[str]:
        """What ``?conn=`` may be, the default first; the choice is shown where there are two."""

    def services(self, conn: str) -> Services:
        """The services of a site, the same ones as long as possible: they cache snapshots.

        They are shared between threads, and nobody closes them.

        Args:
            conn: one of `names`; empty for the default.

        Raises:
            UserError: if there is no such site, or its settings are wrong.
        """


@dataclass(frozen=True, slots=True)
class OneSite:
    """The one site of a stand-alone dashboard."""

    opened: Services

    def names(self) -> Sequence[str]:
        """There is no choice."""
        return ()

    def services(self, conn: str) -> Services:
        """The one site's; any other name is a mistake."""
        if conn:
            raise UserError(f"conn: {conn!r} is unknown; this dashboard has one site, without name")
        return self.opened

"""Addresses of jobs on the dashboard that Airflow mounts."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs, quote, urlsplit

from airflow.providers.common.compat.sdk import conf

from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import check_job_id

#: Where Airflow mounts the dashboard.
PREFIX = "/slurm"
_JOBS = "jobs/"


def dashboard_root() -> str:
    """The dashboard's path, below Airflow's own where ``[api] base_url`` has one."""
    return f"{urlsplit(conf.get('api', 'base_url', fallback='')).path.rstrip('/')}{PREFIX}"


@dataclass(frozen=True, slots=True)
class Destination:
    """A job on the dashboard."""

    job_id: str  #: the job
    conn: str  #: its connection of type ``slurm``

    def path(self) -> str:
        """Within the dashboard."""
        return f"{_JOBS}{quote(self.job_id)}?conn={quote(self.conn, safe='')}"

    def address(self) -> str:
        """The address for Airflow's UI, without a host, so that it works on each one."""
        return f"{dashboard_root()}/{self.path()}"

    @classmethod
    def of_address(cls, address: str) -> Destination | None:
        """Read what `address` gave; None where it is something else."""
        parts = urlsplit(address)
        _, found, job_id = parts.path.rpartition(f"{PREFIX}/{_JOBS}")
        conn = parse_qs(parts.query).get("conn", [""])[0]
        try:
            return cls(check_job_id(job_id), conn) if found and conn else None
        except UserError:
            return None

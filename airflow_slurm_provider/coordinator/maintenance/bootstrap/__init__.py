"""`slurmctl bootstrap`: creates what a site needs in AWS and does not have.

    table ──> billing, point_in_time, deletion_protection
    bucket ──> public_access, encryption, lifecycle

Existing resources stay as they are. Differences from `aws_resources.py` are reported, and changed
only with `BootstrapRequest.update`; nothing is ever deleted. So it may be run again at any time,
and continues where an interrupted run stopped. Requests: two to the table, four to the bucket, and
one for each thing that is made.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

from airflow_slurm_provider.coordinator.maintenance.bootstrap.resources import (
    bucket_steps,
    table_steps,
)
from airflow_slurm_provider.coordinator.maintenance.bootstrap.steps import (
    BootstrapRequest,
    BootstrapResult,
    Clients,
    Step,
    StepResult,
    open_clients,
)
from airflow_slurm_provider.coordinator.spec.site import Site

__all__ = ["BootstrapRequest", "BootstrapResult", "Clients", "Step", "StepResult", "bootstrap"]


def bootstrap(
    site: Site,
    wanted: BootstrapRequest,
    *,
    log: Callable[[Step], None] = lambda _: None,
    clients: Clients | None = None,
) -> BootstrapResult:
    """Create and check the site's table and bucket; `log` gets each step when it is done.

    Raises:
        UserError: if the profile or region is not there, or the bucket belongs to another account.
        ServiceError: if AWS can't be reached, or refuses; call again to continue.
    """
    opened = clients or open_clients(site)
    table = table_steps(opened, site.storage.table, wanted)
    steps = []
    for step in chain(table, bucket_steps(opened, site.bucket, site.prefix, wanted)):
        log(step)
        steps.append(step)
    return BootstrapResult(tuple(steps), dry_run=wanted.dry_run)

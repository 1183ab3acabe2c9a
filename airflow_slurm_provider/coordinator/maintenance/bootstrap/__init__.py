"""`slurmctl bootstrap`: creates what a site needs in AWS and does not have.

    table ──> billing, point_in_time, deletion_protection
    bucket ──> public_access, encryption, lifecycle

Existing resources stay as they are. Differences from `aws_resources.py` are reported, and changed
only with `BootstrapRequest.update`; nothing is ever deleted. So it may be run again at any time,
and continues where an interrupted run stopped. Requests: two to the table, four to the bucket, and
one for each thing that is made.
"""

from airflow_slurm_provider.coordinator.maintenance.bootstrap.clients import Clients
from airflow_slurm_provider.coordinator.maintenance.bootstrap.run import bootstrap
from airflow_slurm_provider.coordinator.maintenance.bootstrap.steps import (
    BootstrapRequest,
    BootstrapResult,
    Step,
    StepResult,
)

__all__ = ["BootstrapRequest", "BootstrapResult", "Clients", "Step", "StepResult", "bootstrap"]

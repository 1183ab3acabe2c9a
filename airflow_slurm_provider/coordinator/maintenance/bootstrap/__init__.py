"""`slurmctl bootstrap`: makes what a site needs in AWS, where it isn't there.

    table ──> billing, point_in_time, deletion_protection
    bucket ──> public_access, encryption, lifecycle

What is there stays as it is, and what differs from `coordinator.infrastructure` is said; only
with `Wanted.update` is it changed, and nothing is ever deleted. So it may be run again at any
time: it goes on where it was cut short. Requests: two to the table, four to the bucket, and one
for each thing that is made.
"""

from airflow_slurm_provider.coordinator.maintenance.bootstrap.clients import Clients
from airflow_slurm_provider.coordinator.maintenance.bootstrap.run import bootstrap
from airflow_slurm_provider.coordinator.maintenance.bootstrap.steps import (
    Made,
    Step,
    StepResult,
    Wanted,
)

__all__ = ["Clients", "Made", "Step", "StepResult", "Wanted", "bootstrap"]

"""`slurmctl doctor`: checks what a job needs. Each check reports what it found and how to fix it.

| check | needs |
| --- | --- |
| ssh; aws | |
| job | aws |
| slurm, remote_dir | ssh |
| max_array_size … requeue, accounting | slurm |
| clock; table, bucket | aws |
| table_access | table |
| bucket_access, conditional_put | bucket |
| node_job and what a job sees from its node | slurm, remote_dir, aws |

A check is skipped when a check that it needs has failed, so each fault is reported once. A check
that raises has failed with that error, and the others continue. Nothing is changed or left behind.
"""

from airflow_slurm_provider.coordinator.maintenance.doctor.diagnose import diagnose
from airflow_slurm_provider.coordinator.maintenance.doctor.iam import policies
from airflow_slurm_provider.coordinator.maintenance.doctor.report import Finding, Level, Report

__all__ = ["Finding", "Level", "Report", "diagnose", "policies"]

"""`slurmctl doctor`: is all there that a job needs? Each check says what it found, and the mend.

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

A check whose needs have failed is not made, so that each fault is named once. One that raises
has failed with what it raised, and the others go on. Nothing is changed and nothing stays.
"""

from airflow_slurm_provider.coordinator.maintenance.doctor.diagnose import diagnose
from airflow_slurm_provider.coordinator.maintenance.doctor.iam import policies
from airflow_slurm_provider.coordinator.maintenance.doctor.report import Finding, Level, Report

__all__ = ["Finding", "Level", "Report", "diagnose", "policies"]

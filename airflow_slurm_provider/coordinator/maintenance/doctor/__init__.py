"""`slurmctl doctor`: checks what a job needs. Each check reports what it found and how to fix it.

A check is skipped when a check that it needs has failed, so each fault is reported once
(`diagnose` has the table). A check that raises has failed with that error, and the others continue.
Nothing is changed or left behind.
"""

from airflow_slurm_provider.coordinator.maintenance.doctor.diagnose import diagnose
from airflow_slurm_provider.coordinator.maintenance.doctor.iam import policies
from airflow_slurm_provider.coordinator.maintenance.doctor.report import Finding, Level, Report

__all__ = ["Finding", "Level", "Report", "diagnose", "policies"]

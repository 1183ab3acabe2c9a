"""Anomalies of a running job: detected, reported once, kept in the audit log.

`Detector` is pure: observations in, alerts out. `AnomalyMonitor`, which every watcher of a job
has, appends the alerts to the audit log and delivers them; `read_alerts` reads them back.
"""

from airflow_slurm_provider.coordinator.anomalies.alert import OVER, RAISED, Alert, AnomalyKind
from airflow_slurm_provider.coordinator.anomalies.audit_log import read_alerts
from airflow_slurm_provider.coordinator.anomalies.detector import Changes, Detector
from airflow_slurm_provider.coordinator.anomalies.monitor import AnomalyMonitor
from airflow_slurm_provider.coordinator.anomalies.observation import Observation

__all__ = [
    "OVER",
    "RAISED",
    "Alert",
    "AnomalyKind",
    "AnomalyMonitor",
    "Changes",
    "Detector",
    "Observation",
    "read_alerts",
]

"""AnomalyMonitor of a job that runs: noticed, told once, kept in the audit trail.

`Detector` is pure: looks in, alerts out. What it notices is appended to the trail and
delivered by `AnomalyMonitor`, which every watcher of a job has; `read_alerts` gives it back.
"""

from airflow_slurm_provider.coordinator.anomalies.alert import OVER, RAISED, Alert, AnomalyKind
from airflow_slurm_provider.coordinator.anomalies.audit_log import read_alerts
from airflow_slurm_provider.coordinator.anomalies.detector import Detector, News
from airflow_slurm_provider.coordinator.anomalies.monitor import AnomalyMonitor
from airflow_slurm_provider.coordinator.anomalies.observation import Observation
from airflow_slurm_provider.coordinator.spec.anomaly_thresholds import Thresholds

__all__ = [
    "OVER",
    "RAISED",
    "Alert",
    "AnomalyKind",
    "AnomalyMonitor",
    "Detector",
    "News",
    "Observation",
    "Thresholds",
    "read_alerts",
]

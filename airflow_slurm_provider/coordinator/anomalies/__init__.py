"""Anomalies of a running job: detected, reported once, kept in the audit log.

`Detector` is pure: observations in, alerts out. `AnomalyMonitor`, which every watcher of a job
has, appends the alerts to the audit log and delivers them; `alert.read_alerts` reads them back.
"""

"""Airflow triggers: thin shells over the coordinator."""

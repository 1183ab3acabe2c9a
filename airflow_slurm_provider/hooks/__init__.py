"""Airflow hooks: thin shells over the coordinator."""

"""Airflow sensors: thin shells over the coordinator."""

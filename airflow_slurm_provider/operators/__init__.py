"""Airflow operators: thin shells over the coordinator."""

"""Slurm: options, batch script, transports, client, and the embedded cluster. No Airflow."""

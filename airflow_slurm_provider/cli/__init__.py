"""`slurmctl`, the command line: submit, follow, retry and aggregate jobs without Airflow.

Each command parses its arguments, calls one coordinator function and prints the result. Only
`app.py` is imported before a command is chosen, so that ``slurmctl --help`` answers at once.
"""

from airflow_slurm_provider.cli.app import main

__all__ = ["main"]

"""`slurmctl`, the command line: submit, follow, retry and aggregate jobs without Airflow.

A face of the coordinator and nothing more: each command parses, calls one coordinator
function and prints what it returned. `app.py` is the only module imported before a
command is chosen, so that ``slurmctl --help`` answers at once.
"""

from airflow_slurm_provider.cli.app import main

__all__ = ["main"]

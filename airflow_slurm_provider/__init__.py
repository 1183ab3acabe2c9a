"""airflow-slurm-provider."""

__version__ = "0.1.0"

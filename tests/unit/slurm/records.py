"""Records of Slurm's accounting for tests."""

from __future__ import annotations

from typing import Any

from airflow_slurm_provider.slurm.accounting import JobRecord
from airflow_slurm_provider.slurm.states import ElementState


def completed(array: str, **usage: Any) -> JobRecord:
    """An array's first element, which ended well; `usage` are fields of its record."""
    return JobRecord(array, 0, 0, ElementState.COMPLETED, **usage)

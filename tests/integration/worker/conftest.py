"""The stack's table and bucket, as the coordinator opens them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from airflow_slurm_provider.coordinator.services import Services, open_services
from airflow_slurm_provider.coordinator.spec.site import load_site


@pytest.fixture
def services(stack: Mapping[str, str]) -> Iterator[Services]:
    opened = open_services(load_site(stack["SLURMCTL_CONFIG"]))
    yield opened
    opened.close()

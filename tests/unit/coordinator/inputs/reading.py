"""Reads an input in a test, or gives the line that refuses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_slurm_provider.coordinator.inputs.reader import Input
from airflow_slurm_provider.coordinator.spec.input_section import InputSection
from slurm_worker.errors import UserError
from slurm_worker.protocol.ports import ObjectStore
from slurm_worker.testing import MemoryObjects


def no_bucket(name: str) -> MemoryObjects:
    raise AssertionError(f"nothing here is on S3, least of all in {name}")


def open_(bucket: Callable[[str], ObjectStore] = no_bucket, /, **settings: Any) -> Input:
    return Input(InputSection(**settings), bucket)


def read(
    bucket: Callable[[str], ObjectStore] = no_bucket, /, **settings: Any
) -> list[tuple[str, dict[str, Any]]]:
    return list(open_(bucket, **settings).items())


def keys(bucket: Callable[[str], ObjectStore] = no_bucket, /, **settings: Any) -> list[str]:
    return [key for key, _ in read(bucket, **settings)]


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message

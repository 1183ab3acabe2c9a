"""The in-memory twins keep the edges' promises."""

from __future__ import annotations

import pytest

from slurm_worker.testing import MemoryObjects, MemoryRows
from tests.contracts.objects import ObjectStoreContract
from tests.contracts.rows import RowsContract


class TestMemoryRows(RowsContract):
    @pytest.fixture
    def rows(self) -> MemoryRows:
        return MemoryRows()

    @pytest.fixture
    def pk(self) -> str:
        return "partition"


class TestMemoryObjects(ObjectStoreContract):
    @pytest.fixture
    def objects(self) -> MemoryObjects:
        return MemoryObjects()

    @pytest.fixture
    def folder(self) -> str:
        return "folder/"

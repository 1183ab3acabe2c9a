"""The benchmark of inputs reads what it has made; what it measures is for `make bench-inputs`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import inputs


@pytest.mark.parametrize("files", [1, 4])
def test_one_file_and_many_files_have_the_same_rows(tmp_path: Path, files: int) -> None:
    inputs.make(tmp_path / "data", 100, files)
    assert inputs.read(tmp_path / "data") == 100


def test_every_object_is_listed() -> None:
    assert inputs.run("list", "2500")["count"] == 2_500

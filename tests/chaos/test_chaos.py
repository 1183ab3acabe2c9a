"""A short round of chaos, always the same seed; `make chaos` runs longer ones."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.chaos.chaos import run_round
from tests.chaos.sizes import SHORT
from tests.stack.settings import ROOT, Mode
from tests.stack.stack import remembered_settings
from tests.stack.state_folder import state_folder

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

SEED = 20130101


def test_no_item_is_lost_doubled_or_wrong_whatever_dies(
    stack: Mapping[str, str], tmp_path: Path
) -> None:
    settings = remembered_settings(state_folder(ROOT))
    if settings is None or settings.mode is not Mode.SLURM:
        pytest.skip("the embedded cluster has no daemon to kill and no element to requeue")
    report = run_round(SHORT, SEED, tmp_path, os.environ, print)
    print("\n".join(report.lines()))
    assert report.problems == []

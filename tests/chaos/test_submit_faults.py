"""Some of the moments at which a submit may die; `make submit-faults` tries them all."""

from __future__ import annotations

import pytest

from tests.chaos import submit_faults

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]


def test_a_job_has_one_array_wherever_its_submit_died() -> None:
    assert submit_faults.run(10, seed=7, say=print) == []

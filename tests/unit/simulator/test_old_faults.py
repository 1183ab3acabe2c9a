"""Each fault that a review of an earlier release found is found by the simulator, too."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from tests.simulator.old_faults import OLD_FAULTS
from tests.simulator.old_faults.fault import OldFault

#: The named seed finds the fault; new random draws may move that to one of the next.
MOST = 300


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("fault", OLD_FAULTS, ids=lambda fault: fault.name)
def test_an_old_fault_that_is_put_back_is_found(fault: OldFault) -> None:
    seeds = range(fault.seed, fault.seed + MOST)
    tried = ((seed, found) for seed in seeds if (found := fault.violation(seed)))
    seed, found = next(tried, (fault.seed, "nothing"))
    assert re.search(fault.promise, found)
    assert fault.violation_without(seed) == "", "the seed finds something without the fault, too"

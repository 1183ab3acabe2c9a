"""What a job's objects say, and what is said of those that are damaged."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from slurm_worker.errors import UserError
from slurm_worker.protocol.job_store import JobStore
from slurm_worker.protocol.keys import JobId, segment_number
from slurm_worker.protocol.paths import JobPaths
from slurm_worker.protocol.slices import pack_slice
from slurm_worker.results.superseded import RetriedItems
from slurm_worker.testing import MemoryObjects

DRAFT = 7


@pytest.fixture
def store() -> JobStore:
    """A job with one good and one damaged segment."""
    store = JobStore(MemoryObjects(), JobPaths("lab", JobId("job-1")))
    good = pack_slice([("a", {"n": 1}), ("b", {"n": 2})])
    for place, data in enumerate((good, b"?" + good[1:])):
        store.objects.put(store.paths.segment(1, segment_number(DRAFT, place)), data)
    return store


def test_a_damaged_segment_of_a_plan_is_named_in_one_line(store: JobStore) -> None:
    with pytest.raises(UserError, match=r"^lab/jobs/job-1/input/001/segment-\d+1 is damaged"):
        list(store.planned_slices(1, DRAFT))


def test_a_damaged_segment_of_a_retry_is_named_in_one_line(store: JobStore, tmp_path: Path) -> None:
    with (
        closing(RetriedItems(tmp_path / "retried.sqlite")) as retried,
        pytest.raises(UserError, match=r"^lab/jobs/job-1/input/001/segment-\d+1 is damaged"),
    ):
        retried.read(store, {1: DRAFT})

"""What a process was doing can be read after its death."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurm_worker.execution.flight_recorder import HangDetector, Record, Recorder

LEASES = [("000-00000000", 1), ("000-00000000", 2), ("001-00000017", 1), ("002-00000003", 9)]


def test_another_process_reads_what_was_written_last(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "record")
    recorder.owner("7_3-r0-abc")
    recorder.limits(3.0, 60.0)
    recorder.hold("000-00000000", 1)
    recorder.task("000-00000000", 1)
    recorder.items(17, 1, 5.0)
    read = Recorder(tmp_path / "record").read()
    assert (read.task, read.attempt, read.owner) == ("000-00000000", 1, "7_3-r0-abc")
    assert (read.position, read.running, read.since) == (17, 1, 5.0)
    assert (read.item_limit_s, read.stall_limit_s) == (3.0, 60.0)
    assert read.leases == (("000-00000000", 1),)


def test_the_owner_is_still_known_between_tasks() -> None:
    recorder = Recorder()
    recorder.owner("w1")
    recorder.task("000-00000000", 1)
    recorder.task()
    assert (recorder.read().task, recorder.read().owner) == ("", "w1")


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(LEASES)), max_size=30))
def test_the_recorded_leases_are_those_held_and_not_dropped(
    steps: list[tuple[bool, tuple[str, int]]],
) -> None:
    recorder, held = Recorder(), set[tuple[str, int]]()
    for hold, lease in steps:
        if hold and lease not in held:
            recorder.hold(*lease)
            held.add(lease)
        elif not hold:
            recorder.drop(*lease)
            held.discard(lease)
        assert set(recorder.read().leases) == held


def test_a_lease_without_a_free_place_replaces_no_other() -> None:
    recorder = Recorder()
    for lease in LEASES:
        recorder.hold(*lease)
    recorder.hold("009-00000009", 1)
    assert set(recorder.read().leases) == set(LEASES)


def half_written(path: Path, item: bytes, written: int) -> Record:
    """What is read when an item's write has come as far as `written` of its bytes."""
    with path.open("r+b") as file:
        file.write(item[:written] + bytes(len(item) - written))
    return Recorder(path).read()


@given(st.integers(0, 23), st.integers(0, 10**6), st.floats(2.0, 1e9))
def test_a_half_written_record_names_no_other_item(
    tmp_path_factory: pytest.TempPathFactory, written: int, position: int, now: float
) -> None:
    path = tmp_path_factory.mktemp("half") / "record"
    recorder = Recorder(path)
    recorder.task("000-00000000", 1)
    recorder.items(position, 1, now)
    record = half_written(path, struct.pack("<qqd", position, 1, now), written)
    assert record.position in (None, position)


def test_a_process_with_progress_does_not_hang_although_records_are_half_written(
    tmp_path: Path,
) -> None:
    path, watch = tmp_path / "record", HangDetector()
    recorder = Recorder(path)
    recorder.limits(3.0, 60.0)
    recorder.task("000-00000000", 1)
    for position in range(1000):
        now = 5_000.0 + position / 10
        recorder.items(position, 1, now)
        record = half_written(
            path, struct.pack("<qqd", position, 1, now), 16 if position % 2 else 24
        )
        assert not watch.hangs(record, now)


@pytest.mark.parametrize(("count", "limit_s"), [(1, 3.0), (4, 60.0)])
def test_a_process_hangs_without_progress_for_longer_than_its_limit(
    count: int, limit_s: float
) -> None:
    recorder, watch = Recorder(), HangDetector()
    recorder.limits(3.0, 60.0)
    recorder.task("000-00000000", 1)
    recorder.items(17 if count == 1 else -1, count, 0.5)
    answers = [
        watch.hangs(recorder.read(), 100.0 + tick / 8) for tick in range(int(limit_s) * 8 + 2)
    ]
    assert answers == [False] * (len(answers) - 1) + [True]


def test_a_process_between_tasks_never_hangs() -> None:
    recorder, watch = Recorder(), HangDetector()
    recorder.limits(3.0, 60.0)
    recorder.task("000-00000000", 1)
    assert not any(watch.hangs(recorder.read(), float(now)) for now in range(1, 200))


def test_a_job_that_was_suspended_does_not_hang_when_it_resumes() -> None:
    recorder, watch = Recorder(), HangDetector()
    recorder.limits(3.0, 60.0)
    recorder.task("000-00000000", 1)
    recorder.items(17, 1, 100.0)
    assert not watch.hangs(recorder.read(), 100.0)
    assert not watch.hangs(recorder.read(), 3700.0)
    recorder.items(18, 1, 3700.1)
    assert not watch.hangs(recorder.read(), 3700.2)

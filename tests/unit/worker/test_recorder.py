"""What a process was doing is told after its death, as it stood."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from slurm_worker.recorder import Recorder

LEASES = [("000-00000000", 1), ("000-00000000", 2), ("001-00000017", 1), ("002-00000003", 9)]


def test_another_process_reads_what_was_written_last(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "record")
    recorder.owner("7_3-r0-abc")
    recorder.limits(3.0, 60.0)
    recorder.hold("000-00000000", 1)
    recorder.task("000-00000000", 1)
    recorder.item(17, 5.0)
    read = Recorder(tmp_path / "record").read()
    assert (read.task, read.attempt, read.owner) == ("000-00000000", 1, "7_3-r0-abc")
    assert (read.position, read.running, read.since) == (17, 1, 5.0)
    assert (read.item_limit_s, read.stall_limit_s) == (3.0, 60.0)
    assert read.leases == (("000-00000000", 1),)


def test_between_tasks_the_owner_is_known_still() -> None:
    recorder = Recorder()
    recorder.owner("w1")
    recorder.task("000-00000000", 1)
    recorder.idle()
    assert (recorder.read().task, recorder.read().owner) == ("", "w1")


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(LEASES)), max_size=30))
def test_the_leases_told_are_those_held_and_not_dropped(
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


def test_a_lease_more_than_there_is_room_for_takes_no_other_s_place() -> None:
    recorder = Recorder()
    for lease in LEASES:
        recorder.hold(*lease)
    recorder.hold("009-00000009", 1)
    assert set(recorder.read().leases) == set(LEASES)

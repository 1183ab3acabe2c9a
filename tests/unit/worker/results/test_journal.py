"""The journal keeps every outcome once, whatever happens to the process."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_worker.aggregate.job.parquet_part import ParquetColumns
from slurm_worker.errors import ErrorClass
from slurm_worker.protocol.slices import TaskItems, pack_slice, unpack_segment, unpack_slice
from slurm_worker.results.journal import Journal
from slurm_worker.results.parts import (
    JSONL,
    PART_FORMATS,
    SQLITE,
    error_outcome,
    lines_of,
    make_part,
    ok_outcome,
)

text = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=10,
)
rows = st.dictionaries(text.filter(lambda name: name != "_key"), values, max_size=5)


def test_outcomes_are_counted_and_written_in_the_order_of_the_items(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.add(ok_outcome(2, "c", {"n": 3}))
    journal.add(ok_outcome(0, "a", [{"n": 1}, {"n": 2}]))
    journal.add(error_outcome(1, "b", ErrorClass.TIMEOUT, "slow", tries=2, at=1.5, item='{"x":1}'))
    lines = lines_of(make_part(journal, "jsonl.gz", "rows", tmp_path)[1], "jsonl.gz").splitlines()
    suffix, data = make_part(journal, "jsonl.gz", "errors", tmp_path)
    assert suffix == "errors.jsonl.gz"
    errors = lines_of(data, suffix)
    assert errors.count(b"\n") == 1
    assert (journal.rows, len(lines)) == (3, 3)
    assert [json.loads(line)["n"] for line in lines] == [1, 2, 3]
    assert (journal.ok, journal.failed, journal.failed_by_class()) == (2, 1, {"timeout": 1})


@pytest.mark.parametrize("part_format", PART_FORMATS)
def test_the_same_outcomes_give_the_same_bytes(tmp_path: Path, part_format: str) -> None:
    columns = ParquetColumns({"n": "int64"})
    parts = []
    for name in ("one", "two"):
        journal = Journal(tmp_path / f"{name}.db")
        for n in range(10):
            journal.add(ok_outcome(n, f"k{n}", [{"n": n}, {"n": -n}]))
        parts.append(make_part(journal, part_format, "rows", tmp_path, columns))
    assert parts[0] == parts[1]
    assert parts[0][0] == part_format


def test_json_lines_and_sqlite_parts_hold_the_same_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.add(ok_outcome(0, "a", [{"n": "x\u2028y"}, {"n": None}]))
    journal.add(ok_outcome(1, "b", None))
    parts = [make_part(journal, part_format, "rows", tmp_path) for part_format in (JSONL, SQLITE)]
    found = {lines_of(data, f"part.{suffix}") for suffix, data in parts}
    assert found == {'{"_key":"a","n":"x\u2028y"}\n{"_key":"a","n":null}\n'.encode()}


def test_a_second_outcome_of_an_item_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.add(ok_outcome(0, "a", {"n": 1}))
    journal.add(ok_outcome(0, "a", {"n": 2}))
    with pytest.raises(sqlite3.IntegrityError):
        journal.flush()


def test_a_journal_that_begins_again_has_no_outcomes_of_the_last_task(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.add(ok_outcome(0, "a", {"n": 1}))
    journal.flush()
    journal.add(ok_outcome(1, "b", {"n": 1}))
    journal.begin()
    assert (journal.ok, journal.failed, journal.rows, journal.positions()) == (0, 0, 0, set())


def test_a_snapshot_has_what_was_flushed_and_can_be_restored(tmp_path: Path) -> None:
    journal, other = Journal(tmp_path / "j"), Journal(tmp_path / "k")
    journal.add(ok_outcome(0, "a", [{"n": 1}, {"n": 2}]))
    journal.add(error_outcome(1, "b", ErrorClass.TIMEOUT, "slow", tries=2, at=1.5, item="{}"))
    journal.flush()
    journal.add(ok_outcome(2, "c", {"n": 1}))
    assert journal.snapshot(journal.begun)[0].items == 1
    other.restore(journal.snapshot(journal.begun))
    assert (other.ok, other.failed, other.rows, other.positions()) == (1, 1, 2, {0, 1})


def test_a_snapshot_never_has_outcomes_of_a_later_attempt(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    first = journal.begun
    journal.begin()
    journal.add(ok_outcome(0, "of another task", {"n": 1}))
    journal.flush()
    assert journal.snapshot(first) == []
    assert len(journal.snapshot(journal.begun)) == 1


def test_flushed_outcomes_survive_kill_9(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from slurm_worker.results.journal import Journal\n"
        "from slurm_worker.results.parts import ok_outcome\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for n in range(300): journal.add(ok_outcome(n, f'k{n}', {'n': n}))\n"
        "journal.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "j")], check=False)
    assert ended.returncode == -signal.SIGKILL
    with closing(sqlite3.connect(tmp_path / "j")) as db:
        assert db.execute("SELECT sum(items) FROM outcomes").fetchone() == (300,)


@settings(max_examples=50, deadline=None)
@given(st.lists(rows, min_size=1, max_size=5))
def test_any_json_row_is_kept_exactly(tmp_path_factory, given_rows) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder / "j")
    for n, row in enumerate(given_rows):
        journal.add(ok_outcome(n, f"k{n}", row))
    suffix, data = make_part(journal, "jsonl.gz", "rows", folder)
    journal.close()
    lines = lines_of(data, f"part.{suffix}").decode().split("\n")[:-1]
    back = [json.loads(line) for line in lines]
    assert [row.pop("_key") for row in back] == [f"k{n}" for n in range(len(given_rows))]
    assert back == given_rows


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(text, rows), min_size=1, max_size=4), min_size=1, max_size=4))
def test_slices_and_segments_give_back_the_items(bundles) -> None:  # type: ignore[no-untyped-def]
    packed = [pack_slice(bundle) for bundle in bundles]
    assert [unpack_slice(data) for data in packed] == bundles
    assert list(unpack_segment(b"".join(packed))) == [item for b in bundles for item in b]


@settings(deadline=None)
@given(st.lists(st.tuples(text, rows), min_size=1, max_size=4), st.data())
def test_an_item_is_as_planned_each_time_it_is_taken(items, data) -> None:  # type: ignore[no-untyped-def]
    first = data.draw(st.integers(0, len(items) - 1))
    taken = TaskItems(pack_slice(items), first, len(items) - first)
    for place, (key, item) in enumerate(items[first:]):
        assert taken.keys[place] == key
        for _ in range(3):
            copy = taken.take(place)
            assert copy == item
            copy["changed"] = copy
        assert json.loads(taken.text(place)) == item


def test_a_read_only_scratch_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        target = Path("/proc/no-such-folder/j")
    else:
        tmp_path.chmod(0o500)
        target = tmp_path / "j"
    with pytest.raises(Exception, match="unable to open database file"):
        Journal(target)


@settings(deadline=None)
@given(st.permutations(range(40)), st.sets(st.integers(0, 39)), st.integers(1, 40))
def test_items_are_counted_and_written_once_in_any_order(  # type: ignore[no-untyped-def]
    tmp_path_factory, order, failing, batch
) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal") / "j")
    for at, n in enumerate(order):
        if n in failing:
            journal.add(error_outcome(n, f"k{n}", ErrorClass.AUTH, "", tries=1, at=0.0, item="{}"))
        else:
            journal.add(ok_outcome(n, f"k{n}", {"n": n}))
        if at % batch == 0:
            journal.flush()
    assert journal.positions() == set(range(40))
    assert (journal.ok, journal.failed, journal.rows) == (
        40 - len(failing),
        len(failing),
        40 - len(failing),
    )
    lines = "".join(journal.bodies(failed=False)).splitlines()
    assert [json.loads(line)["n"] for line in lines] == sorted(set(range(40)) - failing)

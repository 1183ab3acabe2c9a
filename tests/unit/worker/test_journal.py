"""The journal keeps every outcome once, whatever happens to the process."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slurm_worker.errors import ErrorClass
from slurm_worker.journal import Journal
from slurm_worker.parts import error_outcome, ok_outcome, write_part
from slurm_worker.store import pack_slice, unpack_segment, unpack_slice

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
    journal.add(error_outcome(1, "b", ErrorClass.TIMEOUT, "slow", tries=2, at=1.5, item={"x": 1}))
    assert write_part(journal, tmp_path / "rows", failed=False) == 3
    assert write_part(journal, tmp_path / "errors", failed=True) == 1
    lines = gzip.decompress((tmp_path / "rows").read_bytes()).splitlines()
    assert [json.loads(line)["n"] for line in lines] == [1, 2, 3]
    assert (journal.ok, journal.failed, journal.failed_by_class()) == (2, 1, {"timeout": 1})


def test_the_same_outcomes_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        journal = Journal(tmp_path / f"{name}.db")
        for n in range(10):
            journal.add(ok_outcome(n, f"k{n}", {"n": n}))
        write_part(journal, tmp_path / name, failed=False)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_item_counts_once_however_often_it_is_added(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.add(ok_outcome(0, "a", {"n": 1}))
    journal.add(ok_outcome(0, "a", {"n": 2}))
    journal.close()
    again = Journal(tmp_path / "j")
    assert (again.ok, again.positions()) == (1, {0})


def test_what_was_flushed_survives_kill_minus_9(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from slurm_worker.journal import Journal; from slurm_worker.parts import ok_outcome\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for n in range(300): journal.add(ok_outcome(n, f'k{n}', {'n': n}))\n"
        "journal.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "j")], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert Journal(tmp_path / "j").positions() == set(range(300))


@settings(max_examples=50, deadline=None)
@given(st.lists(rows, min_size=1, max_size=5))
def test_any_json_row_comes_back_as_it_went_in(tmp_path_factory, given_rows) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder / "j")
    for n, row in enumerate(given_rows):
        journal.add(ok_outcome(n, f"k{n}", row))
    write_part(journal, folder / "part", failed=False)
    journal.close()
    lines = gzip.decompress((folder / "part").read_bytes()).decode().split("\n")[:-1]
    back = [json.loads(line) for line in lines]
    assert [row.pop("_key") for row in back] == [f"k{n}" for n in range(len(given_rows))]
    assert back == given_rows


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(text, rows), min_size=1, max_size=4), min_size=1, max_size=4))
def test_slices_and_segments_give_back_the_items(bundles) -> None:  # type: ignore[no-untyped-def]
    packed = [pack_slice(bundle) for bundle in bundles]
    assert [unpack_slice(each) for each in packed] == bundles
    assert list(unpack_segment(b"".join(packed))) == [item for b in bundles for item in b]


def test_a_read_only_scratch_is_an_error_not_a_loss(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        target = Path("/proc/no-such-folder/j")
    else:
        tmp_path.chmod(0o500)
        target = tmp_path / "j"
    with pytest.raises(Exception, match="unable to open database file"):
        Journal(target)

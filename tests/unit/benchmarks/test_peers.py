"""The comparison's parts that need no cluster: what is counted, who is killed, what is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers import processes, report
from benchmarks.peers.contenders import PEERS, SHARED, Peer
from benchmarks.peers.counting import Counts, Pace, counts, pace
from benchmarks.peers.ours import work
from benchmarks.peers.running import Report, Watch

KEYS = ["a", "b", "c"]


def of(who: str, killed: str = "nobody", **changes: Any) -> Report:
    told: dict[str, Any] = {
        "who": who,
        "killed": killed,
        "items": 1_000,
        "pace": Pace(2.0, 900.0, 800.0),
        "counts": Counts(0, 0, 0),
        "driver_mb": 100.0,
        "worker_mb": 50.0,
    }
    return Report(**{**told, **changes})


def page(reports: list[Report]) -> str:
    notes = {each.who: "as usual." for each in reports}
    return report.markdown(reports, {**notes, "absent": "nobody else."}, {}, "a machine", "today")


def test_each_item_once_is_nothing_lost_nothing_doubled_nothing_redone() -> None:
    assert counts(KEYS, KEYS, KEYS) == Counts(0, 0, 0)


def test_an_item_counts_once_however_often_it_came() -> None:
    assert counts(KEYS, ["a", "a", "a"], ["b", "b", "c", "c"]) == Counts(2, 1, 2)


def test_what_ran_without_a_result_is_missing() -> None:
    assert counts(KEYS, ["a", "b"], KEYS).missing == 1


def test_a_result_of_no_item_is_no_result() -> None:
    with pytest.raises(ValueError, match="'z'"):
        counts(KEYS, [*KEYS, "z"], KEYS)


def test_the_steady_rate_leaves_out_the_start_and_the_first_bundle() -> None:
    assert pace(10.0, 26.0, [(20.0, 500), (14.0, 500), (24.0, 600)]) == Pace(4.0, 110.0, 100.0)


def test_without_results_there_is_no_pace() -> None:
    found = pace(0.0, 9.0, [])
    assert found.total == 0.0
    assert found.start_up_s != found.start_up_s
    document = of("x", pace=found).to_dict()
    assert document["pace"] == {"start_up_s": None, "steady": None, "total": 0.0}
    assert Report.from_dict(document).to_dict() == document


def test_the_table_has_a_line_per_contender_with_both_kills() -> None:
    reports = [
        of("plain loop", worker_mb=0.0),
        of("plain loop", "driver", counts=Counts(0, 0, 12), took_s=9.4),
        of("ours"),
        of("ours", "worker", counts=Counts(1, 2, 3_000), missing_again=0),
    ]
    *_, loop, ours = report.table(reports)
    assert loop == "| plain loop | 2.0 | 900 | 800 | 100 | - | - | 0 / 0 / 12, 9 s |"
    assert ours == "| ours | 2.0 | 900 | 800 | 100 | 50 | 1 (then 0) / 2 / 3,000, 0 s | - |"


def test_where_a_peer_is_ahead_is_said_with_a_reason() -> None:
    faster = of("other", pace=Pace(1.0, 950.0, 700.0), driver_mb=120.0)
    lines = report.ahead([of("plain loop", pace=Pace(0.1, 9e9, 9e9)), of("ours"), faster])
    assert [line.split(":")[0] for line in lines] == ["- start-up", "- steady rate"]
    assert "other 950 items/s" in lines[1]
    assert report.MEASURES[1].reason in lines[1]
    assert "no peer is ahead" in page([of("ours"), of("other")])


def test_a_run_that_went_wrong_is_marked_and_told() -> None:
    text = page([of("ours"), of("other"), of("other", "worker", problem="ended after 240 s")])
    assert "0 / 0 / 0, 0 s*" in text
    assert "- other, worker killed: ended after 240 s." in text


def test_the_short_form_kills_only_ours_and_dask() -> None:
    runs = peers.plan(peers.chosen([]), 8_000, short=True)
    assert {each.name for each, killed, _ in runs if killed != "nobody"} == {
        "ours",
        "dask-jobqueue",
    }
    assert len(runs) == len(PEERS) + 1 + 4
    assert {count for _, killed, count in runs if killed == "nobody"} == {8_000}


def test_an_unknown_contender_is_refused_with_those_there_are() -> None:
    with pytest.raises(SystemExit, match=r"'make' is unknown; use one of plain loop, ours, dask"):
        peers.chosen(["make"])


def test_packages_of_peers_are_pinned() -> None:
    assert all("==" in package for each in PEERS for package in each.packages)


def test_programs_of_peers_import_nothing_of_ours() -> None:
    programs = [SHARED.parent / "programs" / each.program for each in PEERS]
    for path in (*programs, SHARED / "work.py"):
        for line in path.read_text().splitlines():
            if line.startswith(("import ", "from ")):
                assert "airflow_slurm" not in line
                assert "slurm_worker" not in line
                assert "benchmarks" not in line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("results", "executions", "state"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv(processes.VARIABLE, str(tmp_path))
    monkeypatch.setattr(work(), "WAIT_S", 0.0)
    work()._log.cache_clear()
    return tmp_path


def test_a_bundle_is_one_file_and_every_run_of_the_handler_is_in_a_log(folder: Path) -> None:
    peer = Peer("loop", "loop.py", "")
    assert work().missing(20_000)[:2] == [0, 500]
    assert work().bundle(500, 3) == 3
    assert work().bundle(500, 3) == 0, "its file is there"
    (found,) = peer.results(folder)
    assert found.keys == ("k00000500", "k00000501", "k00000502")
    assert work().missing(1_000) == [0]
    assert Watch(folder, 1_000).executed() == 3
    assert [path.name for path in (folder / "results").iterdir()] == ["00000500.jsonl"]


def test_the_loop_runs_what_is_missing_and_no_more(folder: Path) -> None:
    done = folder / "results" / "00000000.jsonl"
    done.write_text(json.dumps({"id": "k00000000"}) + "\n")
    subprocess.run(
        [*Peer("loop", "loop.py", "").program_with("1000")],
        env={**os.environ, "PYTHONPATH": str(SHARED)},
        check=True,
    )
    assert len((folder / "results" / "00000500.jsonl").read_text().splitlines()) == 500
    assert len(done.read_text().splitlines()) == 1


_AT_WORK = "import work; work.handle(work.item(1)); print('there', flush=True); input()"


def test_only_a_process_of_the_run_that_runs_the_handler_is_killed(folder: Path) -> None:
    (folder / "executions" / f"{os.getpid()}.log").touch()
    worker = subprocess.Popen(
        [sys.executable, "-c", _AT_WORK],
        env={**os.environ, "PYTHONPATH": str(SHARED)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"there\n"
    assert processes.at_work(folder / "executions") == [worker.pid]
    assert worker.pid in processes.tree(os.getpid())
    assert processes.resident_mb(worker.pid, "VmHWM") > 1
    assert not processes.kill(worker.pid, folder / "another"), "it is of no such run"
    assert processes.kill(worker.pid, folder)
    assert worker.wait(timeout=60) == -9
    worker.communicate()
    assert not processes.kill(worker.pid, folder)


def test_a_process_that_hides_its_environment_is_of_the_run_whose_folder_it_works_in(
    tmp_path: Path,
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    for each in (run / "state", other):
        each.mkdir(parents=True)
    sleeper = subprocess.Popen(["sleep", "60"], cwd=run / "state", env={})
    try:
        assert processes.is_of_run(sleeper.pid, run)
        assert not processes.is_of_run(sleeper.pid, other)
        assert processes.end(run) == 1
        assert sleeper.wait(10) == -9
    finally:
        sleeper.kill()
        sleeper.wait()

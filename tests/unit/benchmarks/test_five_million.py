"""The parts of the five-million run that need no stack: what it counts, and what it says."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from benchmarks.five_million import steps
from benchmarks.five_million.report import Run, markdown, phases
from benchmarks.five_million.watching import Killer, Looker, Seen, share_of
from benchmarks.peers.processes import resident_mb


def run(**changes: Any) -> Run:
    verified = {"rows": 1_000, "same_keys": True, "wrong": 0, "cpu_s": 70.0, "disk": {"parts": 9}}
    told = {
        "items": 1_000,
        "tasks": 10,
        "bundle": 100,
        "workers": 2,
        "kills": 3,
        "killed": Counter(worker=2, supervisor=1),
        "lost": 1,
        "moments": {"begun": 0.0, "planned and submitted": 5.0, "last task done": 55.0},
        "seen": {"worker": Seen(70.0, 5, 100.0), "coordinator": Seen(200.0, 1, 60.0)},
        "requests": {"coordinator": {"dynamo_write": 10}, "workers": {"s3_put": 20}},
        "published": 1_000,
        "verified": verified,
    }
    return Run(**{**told, **changes})


def test_a_good_run_has_neither_problems_nor_misses() -> None:
    assert run().problems() == []
    assert run().misses() == []
    assert "20 items a second" in markdown(run())
    assert "70%" in markdown(run())


@pytest.mark.parametrize(
    "changes",
    [
        {"verified": {**run().verified, "rows": 999}},
        {"published": 1_001},
        {"verified": {**run().verified, "same_keys": False}},
        {"verified": {**run().verified, "wrong": 1}},
        {"killed": Counter(worker=2)},
    ],
)
def test_a_lost_a_doubled_or_a_wrong_row_is_a_problem(changes: dict[str, Any]) -> None:
    (problem,) = run(**changes).problems()
    assert f"**{problem}**" in markdown(run(**changes))


def test_targets_that_are_missed_are_said() -> None:
    seen = {"worker": Seen(70.0, 5, 200.0), "coordinator": Seen(400.0, 1, 60.0)}
    assert len(run(seen=seen).misses()) == 2


def test_the_digest_of_keys_tells_a_lost_and_a_doubled_key_in_any_order() -> None:
    keys = [steps.key_of(number) for number in range(1_000)]
    shuffled = random.Random(1).sample(keys, len(keys))
    assert steps.digest_of(keys) == steps.digest_of(shuffled)
    assert steps.digest_of(keys) != steps.digest_of([*keys[1:], keys[5]])


def test_the_handler_gives_what_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(steps.HANDLER))
    import handler  # type: ignore[import-not-found]

    row = handler.handle({"id": "user-1"}, None)
    assert row["chain"] == handler.chain("user-1")
    assert row["cpu_ns"] > 0
    sys.modules.pop("handler")


def test_phases_are_named_by_what_ends_them() -> None:
    assert phases({"begun": 1.0, "b": 4.0, "a": 3.0}) == [("a", 2.0), ("b", 1.0)]


def test_kills_are_spread_over_the_items() -> None:
    killer = Killer("nobody", 1_000, 4, random.Random(1), lambda _: None)
    assert [killer.due(ok) for ok in (0, 49, 50, 500, 1_000)] == [0, 0, 1, 3, 4]
    killer.step(1_000)
    assert killer.done == 0, "there is nobody of this job to kill"


def test_a_process_is_looked_at_while_it_lives() -> None:
    looker = Looker("nobody")
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
    looker.steps["sleeper"] = sleeper
    looker.look()
    sleeper.communicate("\n", timeout=60)
    looker.look()
    assert looker.seen["sleeper"].processes == 1
    assert looker.seen["sleeper"].peak_mb > 0
    assert resident_mb(os.getpid(), "VmHWM") > 0


def test_the_share_is_of_the_time_that_workers_lived() -> None:
    assert share_of(30.0, {"worker": Seen(1.0, 2, 60.0)}) == 0.5
    assert share_of(30.0, {}) == 0.0


@pytest.fixture(autouse=True)
def _no_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURMCTL_CONFIG", raising=False)
    return


def test_without_a_stack_it_says_what_to_do() -> None:
    with pytest.raises(SystemExit, match="make stack-up"):
        steps.open_site()

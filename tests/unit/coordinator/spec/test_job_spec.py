"""A job's times are refused in one line, in the YAML's own words, before anything is planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_slurm_provider.coordinator.spec.job_spec import load_config
from slurm_worker.errors import UserError

BASE: dict[str, Any] = {
    "job_id": "j",
    "input": {"path": "items.csv", "key": "id"},
    "handler": {"entry": "handler:handle"},
}


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"lease": {"ttl": "10s", "heartbeat": "2s"}}, "write lease.ttl: 20s, or lease.margin: 5s"),
        ({"lease": {"margin": "2m"}}, "write lease.ttl: 195s"),
        ({"lease": {"heartbeat": "1ms"}}, "lease.heartbeat: 0.001s is too often"),
        ({"lease": {"ttl": float("inf")}}, "lease.ttl: inf is not valid"),
        ({"lease": {"stall": "9" * 400 + "d"}}, "lease.stall: "),
        ({"worker": {"item_timeout": "2h"}}, "write lease.stall: 14400s"),
        ({"worker": {"backoff": "5m"}}, "write worker.max_backoff: 300s"),
        ({"limits": {"api": {"rate": "1/s", "send_window": "5ms"}}}, "limits.api.send_window"),
        ({"limits": {"api": {"rate": 1e12}}}, "limits.api.rate: 1000000000000.0 is not valid"),
        ({"limits": {"api": {"rate": "1/s", "burst": 10**40}}}, "limits.api.burst"),
        ({"limits": {"api": {"rate": "1/h"}}, "slurm": {"time": "30"}}, "raise slurm.time"),
        ({"worker": {"item_timeout": "50m"}, "slurm": {"time": "30"}}, "or raise slurm.time"),
    ],
    ids=str,
)
def test_times_that_contradict_each_other_are_refused(over: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as found:
        load_config({**BASE, **over})
    assert message in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "over",
    [
        {"lease": {"ttl": "10s", "heartbeat": "2s", "margin": "5s"}},
        {"lease": {"stall": "3h"}, "worker": {"item_timeout": "2h"}},
        {"limits": {"api": {"rate": "1/h"}}, "slurm": {"time": "2:00:00"}},
        {"limits": {"api": {"rate": "600/min", "burst": 50, "quota_per_day": 10}}},
    ],
    ids=str,
)
def test_consistent_times_are_accepted(over: dict[str, Any]) -> None:
    assert load_config({**BASE, **over}).spec.job_id == "j"


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"wrkers": 3}, "wrkers: is not a known key; did you mean 'workers' or 'worker'?"),
        ({"worker": {"trys": 3}}, "worker.trys: is not a known key; did you mean 'tries'?"),
        ({"limits": {"api": {"rate": 1, "brust": 3}}}, "limits.api.brust: is not a known key; did"),
        ({"retry": {"network": {"round": 3}}}, "did you mean 'rounds'?"),
        ({"classify": [{"class": "network", "mesage": "x"}]}, "did you mean 'message'?"),
    ],
    ids=str,
)
def test_an_unknown_key_is_refused_with_the_nearest_known_key(
    over: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as found:
        load_config({**BASE, **over})
    assert message in str(found.value)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            {"worker": 4},
            "worker: 4 is not a section of keys; did you mean 'workers'? If not, write",
        ),
        ({"input": "a.csv"}, "'a.csv' is not a section of keys; write {path: …}"),
        ({"slurm": "main"}, "slurm: 'main' is not a section of keys; write {NAME: VALUE}"),
        ({"limits": {"api": 5}}, "limits.api: 5 is not a section of keys; write {rate: …}"),
        (
            {"retry": {"network": "5 times"}},
            "'5 times' is not a rule; write never, 5 or {rounds: 5}",
        ),
        ({"workers": "four"}, "workers: 'four' is not a whole number"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind_is_refused_with_what_to_write(
    over: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as found:
        load_config({**BASE, **over})
    assert message in str(found.value)


def test_a_missing_bracket_may_be_in_the_line_before(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("job_id: j\ninput: {path: a.csv, key: id\nworkers: 1\n")
    with pytest.raises(UserError, match=r"line 3, .*; correct that line or the one before it"):
        load_config(path)


@pytest.mark.parametrize("path", ["", " "])
def test_an_empty_input_path_is_refused(path: str) -> None:
    with pytest.raises(UserError, match=r"input\.path: is empty; name a file or a folder"):
        load_config({**BASE, "input": {"path": path, "key": "id"}})


def test_a_config_that_names_a_key_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("job_id: j\nworkers: 1\nslurm: {mem: 1G, mem: 2G}\n")
    with pytest.raises(UserError, match=r"line 3, column 18: the key 'mem' occurs twice"):
        load_config(path)


def test_a_config_may_override_what_it_merges(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "job_id: j\ninput: &i {path: a.csv, key: id}\nhandler: {entry: 'h:f'}\n"
        "slurm: {<<: {mem: 1G}, mem: 2G}\n"
    )
    assert load_config(path).spec.job_id == "j"

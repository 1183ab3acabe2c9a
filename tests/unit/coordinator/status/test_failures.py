"""A job's failures, explained: by class and message, with those that a retry cured."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.status.failures import cured_by_class, explain, normalise
from slurm_worker.errors import ItemError
from slurm_worker.execution import calls
from tests.unit.coordinator.fakes import FakeSlurm, make_config, services, world_of


def log(_line: str) -> None:
    pass


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("user 17 has no email", "user 4711 has no email"),
        ("GET http://api/users/1 said 'no'", "GET http://api/users/2?x=3 said 'never'"),
        ("no file /data/run 1/a.csv", "no file /data/run 2/a.csv"),
        ("trace 3f2a9c0b1d4e5f60 lost", "trace 00ff9c0b1d4e5faa lost"),
        ("id 123e4567-e89b-12d3-a456-426614174000", "id 00000000-e89b-12d3-a456-426614174abc"),
        ("at 0x7f00: N912EV", "at 0xdeadbeef: N5FQAA1"),
    ],
)
def test_messages_of_the_same_fault_are_one_group(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


def test_messages_of_different_faults_are_different_groups() -> None:
    assert normalise("connection refused by 10.0.0.1") != normalise("connection reset by 10.0.0.1")


def test_a_message_that_all_failures_share_is_shown_in_full(tmp_path: Path) -> None:
    edges, config = services(FakeSlurm()), make_config(tmp_path)
    api.submit(edges, config, log=log)

    def handle(item: dict[str, Any], _context: object) -> dict[str, Any]:
        if item["n"] < 3:
            raise ItemError("bad_input", "no column 'vendor'")
        raise ItemError("not_found", f"no user {item['n']}")

    world_of(edges, config, tmp_path / "w0", handle).worker().run()
    assert [each.message for each in explain(edges, config.spec.id)] == [
        "no user <n>",
        "no column 'vendor'",
    ]


def test_a_message_cut_within_a_character_can_be_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges, config = services(FakeSlurm()), make_config(tmp_path)
    api.submit(edges, config, log=log)

    def handle(_item: dict[str, Any], _context: object) -> dict[str, Any]:
        raise ItemError("bad_input", "read \udcff")

    # As a worker before this one wrote it.
    monkeypatch.setattr(calls, "describe", str)
    world_of(edges, config, tmp_path / "w0", handle).worker().run()
    assert [each.message for each in explain(edges, config.spec.id)] == [r"read \udcff"]


def test_failures_are_grouped_with_examples_and_superseded_counts(tmp_path: Path) -> None:
    edges, config = services(FakeSlurm()), make_config(tmp_path)
    job_id = config.spec.id
    api.submit(edges, config, log=log)

    def first(item: dict[str, Any], _context: object) -> dict[str, Any]:
        if item["n"] < 8:
            raise ItemError("network", f"connection {item['n']} reset")
        if item["n"] < 10:
            raise ItemError("bad_input", "no email")
        return item

    def second(item: dict[str, Any], _context: object) -> dict[str, Any]:
        if item["n"] == 0:
            raise ItemError("timeout", "not done after 30 s")
        return item

    world_of(edges, config, tmp_path / "w0", first).worker().run()
    assert [(each.error_class, each.count) for each in explain(edges, job_id)] == [
        ("network", 8),
        ("bad_input", 2),
    ]
    api.retry(edges, job_id, ["network"], log=log)
    world_of(edges, config, tmp_path / "w1", second).worker().run()
    bad, timeout, network = explain(edges, job_id)
    assert (bad.error_class, bad.message, bad.count) == ("bad_input", "no email", 2)
    assert (timeout.count, timeout.examples) == (1, [("k0", "not done after 30 s")])
    assert (network.message, network.count, network.superseded) == ("connection <n> reset", 0, 8)
    assert [key for key, _ in network.examples] == ["k0", "k1", "k2"]
    assert network.first <= network.last
    assert [each.error_class for each in explain(edges, job_id, "timeout")] == ["timeout"]
    assert cured_by_class(edges, job_id) == {"network": 7}


def test_bugs_at_different_places_are_different_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges, config = services(FakeSlurm()), make_config(tmp_path)
    api.submit(edges, config, log=log)
    places = cycle(f"h.py:{line} in f" for line in (4, 9))
    monkeypatch.setattr("slurm_worker.errors.place_of", lambda _error, _folder: next(places))

    def handle(item: dict[str, Any], _context: object) -> dict[str, Any]:
        return {"x": item["no such field"]}

    world_of(edges, config, tmp_path / "w0", handle).worker().run()
    messages = {group.message for group in explain(edges, config.spec.id)}
    assert messages == {f"KeyError: 'no such field' (h.py:{line} in f)" for line in (4, 9)}

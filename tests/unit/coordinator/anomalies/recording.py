"""Looks as compact JSON: one line each, gzipped, so that a run can be judged again."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from airflow_slurm_provider.coordinator.anomalies.baseline import Observation
from airflow_slurm_provider.coordinator.status.rate_limits import LimitState
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.job_rows import JobRow, RoundRow
from slurm_worker.protocol.job_totals import JobTotals
from slurm_worker.protocol.keys import JobState, RoundState, TaskState
from slurm_worker.protocol.slices import Slice
from slurm_worker.protocol.task_history import read_crashes, read_history
from slurm_worker.protocol.tasks import TaskRow

RUNS = Path(__file__).with_name("runs")


def write_run(path: Path, observations: Iterable[Observation]) -> None:
    """Record a run; the same looks give the same bytes."""
    lines = [json.dumps(_to_json(each), separators=(",", ":")) for each in observations]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def read_run(path: Path) -> list[Observation]:
    """The looks of a recorded run, in order."""
    return [
        _from_json(json.loads(line)) for line in gzip.decompress(path.read_bytes()).splitlines()
    ]


def _to_json(observation: Observation) -> dict[str, Any]:
    snapshot = observation.snapshot
    # No rule reads the totals by worker, or the slowest tasks.
    done = {**snapshot.done.to_dict(), "workers": {}, "slowest": []}
    return {
        "job": asdict(snapshot.job),
        "rounds": [asdict(each) for each in snapshot.rounds],
        "at_ms": snapshot.at_ms,
        "done": done,
        "leased": [_task(each) for each in snapshot.leased],
        "ended": [_task(each) for each in snapshot.ended],
        "given_back": [_task(each) for each in snapshot.given_back],
        "counts": [snapshot.ready, snapshot.waiting, snapshot.lost, snapshot.rows_read],
        "finished": observation.finished,
        "workers": observation.workers,
        "nodes": dict(observation.nodes),
        "limits": [asdict(each) for each in observation.limits],
        "money": [observation.dollars, observation.estimate],
        "lease": asdict(observation.lease),
    }


def _from_json(raw: dict[str, Any]) -> Observation:
    ready, waiting, lost, rows_read = raw["counts"]
    dollars, estimate = raw["money"]
    snapshot = Snapshot(
        job=JobRow(**{**raw["job"], "state": JobState(raw["job"]["state"])}),
        rounds=tuple(
            RoundRow(**{**each, "state": RoundState(each["state"])}) for each in raw["rounds"]
        ),
        at_ms=raw["at_ms"],
        done=JobTotals.from_dict(raw["done"]),
        leased=tuple(_row(each) for each in raw["leased"]),
        ended=tuple(_row(each) for each in raw["ended"]),
        ready=ready,
        waiting=waiting,
        lost=lost,
        rows_read=rows_read,
        given_back=tuple(_row(each) for each in raw.get("given_back", ())),
    )
    return Observation(
        snapshot,
        finished=raw["finished"],
        workers=raw["workers"],
        nodes=raw["nodes"],
        limits=tuple(LimitState(**each) for each in raw["limits"]),
        dollars=dollars,
        estimate=estimate,
        lease=LeaseConfig(**raw["lease"]),
    )


def _task(row: TaskRow) -> dict[str, Any]:
    """What differs from a fresh row."""
    fresh = TaskRow(row.round_no, row.sequence, row.state, row.where)
    always = ("round_no", "sequence", "state")
    found = {
        each.name: getattr(row, each.name)
        for each in fields(row)
        if each.name in always or getattr(row, each.name) != getattr(fresh, each.name)
    }
    if row.history:
        found["history"] = [entry.to_row() for entry in row.history]
    if row.crashes:
        found["crashes"] = [crash.to_text() for crash in row.crashes]
    return {**found, "count": row.where.count}


def _row(raw: dict[str, Any]) -> TaskRow:
    count = raw.pop("count")
    lists = {"crashes": read_crashes(raw), "history": read_history(raw)}
    where = Slice(0, 0, 1, count, "")
    return TaskRow(**{**raw, **lists, "state": TaskState(raw["state"]), "where": where})

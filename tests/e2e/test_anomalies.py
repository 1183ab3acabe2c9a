"""Each anomaly is provoked on the stack and told once; a clean run has none to tell.

The jobs run side by side, watched as a waiting sensor watches them. Their thresholds are
those of jobs that take seconds instead of hours (`QUICK`), the same for all of them.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from airflow_slurm_provider.cli.wait_loop import TOLERATED_FAILURES
from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.anomalies.alert import Alert, AnomalyKind, read_alerts
from airflow_slurm_provider.coordinator.services import Services, SharedPolling
from airflow_slurm_provider.coordinator.spec.job_spec import load_config
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.coordinator.ttl_cache import TTLCache
from airflow_slurm_provider.coordinator.watcher import Watcher
from airflow_slurm_provider.slurm.poller import ArrayPoller
from slurm_worker.errors import ServiceError
from slurm_worker.protocol.job_totals import JobTotals
from slurm_worker.protocol.keys import JobId
from tests.stack.settings import ROOT, Mode
from tests.stack.stack import remembered_settings
from tests.stack.state_folder import state_folder

pytestmark = [pytest.mark.stack, pytest.mark.alone, pytest.mark.timeout(500)]

QUICK = {
    "window": "20s",
    "stall": "10s",
    "straggler": "6s",
    "losses": 2,
    "limit_after": "1s",
    "limit_cut": 0.8,
    "idle_after": "12s",
}
LEASE = {"ttl": "20s", "heartbeat": "5s", "margin": "1s"}
T = TypeVar("T")
INTERVAL_S = 2.0
#: After its alert a job is watched on for so long, so that a second one would show.
SETTLE_S = 6.0
HANDLER = """
import os, pathlib, signal, time
from slurm_worker.errors import ItemError, RateLimited

def handle(item, context):
    what, folder = context.params["what"], pathlib.Path(context.params["folder"])
    provoked = (folder / "provoke").exists()
    if what == "bad_node" and provoked and os.environ["SLURMD_NODENAME"] == "node2":
        raise ItemError("network", "no route to host")
    if what == "error_rate" and provoked and item["n"] % 2:
        raise ItemError("network", "connection reset")
    if what == "limit_starved" and provoked and first(folder, 1):
        raise RateLimited(40)
    if what == "lease_loss" and provoked and first(folder, 2):
        for pid in (os.getppid(), os.getpid()):
            os.kill(pid, signal.SIGSTOP)
    if what == "stall" and provoked or what == "straggler" and provoked and first(folder, 1):
        while not (folder / "over").exists():
            time.sleep(0.2)
    time.sleep(0.8 if what == "throughput" and provoked else context.params["seconds"])
    return {"n": item["n"]}

def first(folder, count):
    # Whether this call, of all that ask, is among the first ones.
    for number in range(count):
        try:
            (folder / f"first-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return True
    return False
"""


def _usual(done: JobTotals, _: int) -> bool:
    """It is known how long tasks take, and how many items fail."""
    return done.tasks >= 25


def _both_nodes(done: JobTotals, _: int) -> bool:
    return len(done.nodes) == 2 and all(each.tasks >= 6 for each in done.nodes.values())


def _for_long(done: JobTotals, now_ms: int) -> bool:
    """There are windows enough to know the throughput."""
    began_s = min(done.timeline, default=now_ms) * done.width_s
    return done.tasks >= 64 and now_ms / 1000 - began_s >= 38


@dataclass(frozen=True)
class Provoked:
    """A job that has one anomaly, or none.

    Args:
        when: when the handler is to begin with it.
        most_s: how long the job is watched, from its first lease on.
    """

    kind: AnomalyKind | None
    items: int = 1000
    bundle: int = 10
    workers: int = 1
    seconds: float = 0.02
    most_s: float = 120.0
    watchers: int = 1
    when: Callable[[JobTotals, int], bool] = _usual
    limits: Mapping[str, Any] = field(default_factory=dict)
    slurm: Mapping[str, Any] = field(default_factory=dict)
    anomalies: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "clean" if self.kind is None else self.kind.value

    def provoke(self, folder: Path, snapshot: Snapshot) -> None:
        """Have the handler begin with it, if it is time."""
        if self.when(snapshot.done, snapshot.at_ms):
            (folder / "provoke").touch()


EVERY = [
    # Three workers of this size don't fit on one node; the third may have to wait for others.
    Provoked(
        AnomalyKind.BAD_NODE,
        items=4000,
        workers=3,
        slurm={"mem": "1500M"},
        when=_both_nodes,
        most_s=300.0,
    ),
    Provoked(AnomalyKind.LEASE_LOSS, workers=3),
    Provoked(
        AnomalyKind.THROUGHPUT,
        items=2000,
        bundle=5,
        workers=2,
        seconds=0.1,
        when=_for_long,
        most_s=240.0,
    ),
    Provoked(None, workers=2, seconds=0.04, limits={"rate": "80/s"}),
    Provoked(AnomalyKind.STALL, watchers=2),
    Provoked(AnomalyKind.STRAGGLER, workers=2),
    # Long enough that there are items left to fail, however late a busy machine looks.
    Provoked(AnomalyKind.ERROR_RATE, items=2000),
    Provoked(AnomalyKind.LIMIT_STARVED, seconds=0.0, limits={"rate": "30/s"}),
    Provoked(AnomalyKind.LIMIT_IDLE, limits={"rate": "5000/s"}),
    Provoked(AnomalyKind.COST, anomalies={"budget": 1e-6}),
]
#: All at once they want more than two cores have: `make anomalies`. The others need few.
SHORT = (
    None,
    AnomalyKind.STALL,
    AnomalyKind.STRAGGLER,
    AnomalyKind.ERROR_RATE,
    AnomalyKind.LIMIT_IDLE,
    AnomalyKind.COST,
)
PROVOKED = [each for each in EVERY if each.kind in SHORT or os.environ.get("ANOMALIES") == "all"]


@dataclass(frozen=True)
class Outcome:
    """What was told of a job."""

    alerts: list[Alert]
    delivered: list[Alert]
    said: list[str]


@pytest.fixture(scope="module")
def outcomes(services: Services) -> Iterator[dict[str, Outcome]]:
    settings = remembered_settings(state_folder(ROOT))
    if settings is None or settings.mode is not Mode.SLURM:
        pytest.skip("the embedded cluster has one node, and none of Slurm's ways to die")
    poller = ArrayPoller(services.slurm.arrays)
    edges = replace(services, shared=SharedPolling(poller, TTLCache()), poll_s=INTERVAL_S)
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(len(PROVOKED)) as pool:
        folder = Path(name)
        folder.chmod(0o755)
        running = {
            each.name: pool.submit(watch, edges, each, folder / each.name) for each in PROVOKED
        }
        yield {name: future.result() for name, future in running.items()}


def watch(services: Services, what: Provoked, folder: Path) -> Outcome:
    """Run the job, watched, until it is over or its alert has been out for a while."""
    job_id = submit(services, what, folder)
    said: list[str] = []
    watchers = [Watcher(services, job_id, said.append) for _ in range(what.watchers)]
    delivered: list[Alert] = []
    deadline = float("inf")
    try:
        while time.monotonic() < deadline:
            seen, *_ = [patiently(each.poll) for each in watchers]
            assert seen.snapshot is not None
            what.provoke(folder, seen.snapshot)
            delivered += [alert for each in watchers for alert in each.take_alerts()]
            if deadline == float("inf") and seen.progress.tasks.get("leased"):
                deadline = time.monotonic() + what.most_s
            if delivered and what.kind is not None:
                deadline = min(deadline, time.monotonic() + SETTLE_S)
            if seen.finished:
                break
            time.sleep(INTERVAL_S)
    finally:
        (folder / "over").touch()
        control.cancel(services, job_id)
    return Outcome(read_alerts(services, job_id), delivered, said)


def submit(services: Services, what: Provoked, folder: Path) -> JobId:
    """Submit the job; its handler, another user's process, finds in `folder` what to do."""
    folder.mkdir()
    folder.chmod(0o777)
    lines = [json.dumps({"id": f"k{n:05}", "n": n}) + "\n" for n in range(what.items)]
    (folder / "items.jsonl").write_text("".join(lines))
    (folder / "code").mkdir()
    (folder / "code" / "handler.py").write_text(HANDLER)
    job_id = f"anomalies-{what.name.replace('_', '-')}-{uuid.uuid4().hex[:6]}"
    params = {"what": what.name, "folder": str(folder), "seconds": what.seconds}
    config = load_config(
        {
            "job_id": job_id,
            "input": {"path": str(folder / "items.jsonl"), "key": "id"},
            "bundle": what.bundle,
            "workers": what.workers,
            "handler": {"entry": "handler:handle", "code": str(folder / "code"), "params": params},
            "worker": {"tries": 2 if what.kind is AnomalyKind.LIMIT_STARVED else 1},
            "limits": {job_id: what.limits} if what.limits else {},
            "lease": LEASE,
            "slurm": {"mem": "200M", "time": "00:05:00", **what.slurm},
            "anomalies": {**QUICK, **what.anomalies},
        }
    )
    patiently(lambda: api.submit(services, config, log=lambda _: None))
    return config.spec.id


def patiently(call: Callable[[], T]) -> T:
    """Call again where a service is away, as who waits does: the machine is busy."""
    for _ in range(TOLERATED_FAILURES):
        try:
            return call()
        except ServiceError:
            time.sleep(INTERVAL_S)
    return call()


@pytest.mark.parametrize("what", [each for each in PROVOKED if each.kind], ids=lambda e: e.name)
def test_an_anomaly_is_told_once_and_nothing_else_is(
    outcomes: dict[str, Outcome], what: Provoked
) -> None:
    outcome = outcomes[what.name]
    assert [each.kind for each in outcome.alerts] == [what.kind], outcome.said
    assert [each.id for each in outcome.delivered] == [outcome.alerts[0].id]
    assert sum(line.startswith("anomaly: ") for line in outcome.said) == 1
    assert outcome.alerts[0].numbers
    assert outcome.alerts[0].advice


def test_a_clean_run_has_none_to_tell(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["clean"]
    assert outcome.alerts == [], outcome.said
    assert any("1,000 of 1,000 items ok" in line for line in outcome.said), outcome.said

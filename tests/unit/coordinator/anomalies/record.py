"""Record runs for the replay test: ``python -m tests.unit.coordinator.anomalies.record``.

Without arguments the modelled jobs of `scenarios.py`; with ``stack`` those that
`tests/e2e/test_anomalies.py` provokes (or only the kinds named behind it), on the development
stack that must be up.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.anomalies.baseline import Observation
from airflow_slurm_provider.coordinator.anomalies.monitor import observe
from airflow_slurm_provider.coordinator.services import Services, SharedPolling, open_services
from airflow_slurm_provider.coordinator.spec.site import load_site
from airflow_slurm_provider.coordinator.spec_store import read_spec
from airflow_slurm_provider.coordinator.submission import control
from airflow_slurm_provider.coordinator.ttl_cache import TTLCache
from airflow_slurm_provider.slurm.poller import ArrayPoller
from slurm_worker.protocol.keys import JobId
from tests.e2e.test_anomalies import EVERY, INTERVAL_S, Provoked, submit
from tests.stack.demo import read_environment
from tests.unit.coordinator.anomalies.fleet import Fleet
from tests.unit.coordinator.anomalies.recording import RUNS, write_run
from tests.unit.coordinator.anomalies.scenarios import BAD, GOOD


def record_modelled() -> None:
    """Every scenario, in virtual time."""
    for name, plan in {**GOOD, **BAD}.items():
        write_run(RUNS / f"{name}.jsonl.gz", Fleet(plan).observations())
        sys.stdout.write(f"{name}\n")


def record_stack(kinds: list[str]) -> None:
    """The jobs of the end-to-end test, side by side; all where no kind is named."""
    services = open_services(load_site(read_environment()["SLURMCTL_CONFIG"]))
    shared = SharedPolling(ArrayPoller(services.slurm.arrays), TTLCache())
    edges = replace(services, shared=shared, poll_s=INTERVAL_S)
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(len(EVERY)) as pool,
    ):
        Path(folder).chmod(0o755)
        for each in [each for each in EVERY if not kinds or each.name in kinds]:
            pool.submit(_record, edges, each, Path(folder) / each.name)


def _record(services: Services, what: Provoked, folder: Path) -> None:
    job_id = submit(services, what, folder)
    kind = "good" if what.kind is None else what.kind.value
    try:
        write_run(RUNS / f"{kind}.stack.jsonl.gz", _observations(services, what, folder, job_id))
    finally:
        (folder / "over").touch()
        control.cancel(services, job_id)
    sys.stdout.write(f"{kind}.stack\n")


def _observations(
    services: Services, what: Provoked, folder: Path, job_id: JobId
) -> Iterator[Observation]:
    spec = read_spec(services, services.jobs(job_id).get())
    deadline = float("inf")
    while time.monotonic() < deadline:
        status = api.status(services, job_id)
        assert status.snapshot is not None, "a status has one"
        what.provoke(folder, status.snapshot)
        if deadline == float("inf") and status.snapshot.leased:
            deadline = time.monotonic() + what.most_s
        yield observe(services, spec, status, status.snapshot)
        if status.finished:
            return
        time.sleep(INTERVAL_S)


if __name__ == "__main__":
    record_stack(sys.argv[2:]) if sys.argv[1:2] == ["stack"] else record_modelled()

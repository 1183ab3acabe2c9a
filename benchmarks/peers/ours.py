"""Ours on the stack: `slurmctl submit --wait`, over SSH, with the stack's table and bucket."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import yaml

from airflow_slurm_provider.coordinator.services import open_services
from airflow_slurm_provider.coordinator.spec.site import load_site
from benchmarks.peers.contenders import SHARED, WORKERS, Result, cancel_jobs
from benchmarks.peers.processes import VARIABLE
from slurm_worker.aggregate.job.parts import Fetched
from slurm_worker.protocol.keys import JobId


@cache
def work() -> ModuleType:
    """The module of the task, which is outside of our packages."""
    spec = importlib.util.spec_from_file_location("work", SHARED / "work.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True, slots=True)
class Ours:
    """Our tool, with the results in table and bucket; see `contenders.Contender`."""

    name: str = "ours"
    note: str = (
        "`slurmctl submit --wait` with its defaults: over SSH as an ordinary user, items and "
        "results in S3, leases in DynamoDB. Measured until the job is done, without aggregation. "
        "The emulators of S3 and DynamoDB (SeaweedFS, moto) run on the same two cores as the "
        "workers, and each request goes to them. The peers only write to a local disk. The kill "
        "ends the process of the handler, and its supervisor starts another."
    )
    kills: tuple[str, ...] = ("worker", "driver")

    def prepare(self) -> None:
        if "SLURMCTL_CONFIG" not in os.environ:
            raise SystemExit("peers: the stack is not up; run make stack-up, then make bench-peers")

    def command(self, folder: Path, items: int) -> list[str]:
        config = folder / "config.yaml"
        if not config.exists():
            lines = (json.dumps(work().item(number)) + "\n" for number in range(items))
            (folder / "items.jsonl").write_text("".join(lines))
            config.write_text(yaml.safe_dump(self._config(folder)))
        slurmctl = Path(sys.executable).with_name("slurmctl")
        return [str(slurmctl), "submit", str(config), "--wait", "--interval", "1"]

    def results(self, folder: Path) -> Iterator[Result]:
        services = open_services(load_site(os.environ["SLURMCTL_CONFIG"]))
        try:
            store = services.store(JobId(folder.name))
            for marker in store.markers():
                rows = (
                    row
                    for part in marker.parts
                    if part.kind == "rows"
                    for row in Fetched(store, marker.task, part).rows()
                )
                yield Result(marker.finished, tuple(row["_key"] for row in rows))
        finally:
            services.close()

    def cancel(self, folder: Path) -> None:
        cancel_jobs(folder.name)

    def _config(self, folder: Path) -> dict[str, object]:
        return {
            "job_id": folder.name,
            "input": {"path": str(folder / "items.jsonl"), "key": "id"},
            "handler": {"entry": "work:handle", "code": str(SHARED)},
            "bundle": work().BUNDLE,
            "workers": WORKERS,
            "slurm": {
                "mem": "500M",
                "time": "00:15:00",
                "cpus_per_task": 1,
                "setup": [f"export {VARIABLE}={folder}"],
            },
        }

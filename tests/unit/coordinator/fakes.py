"""A cluster that remembers what was submitted, and services in memory around it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.job_spec import Config, load_config
from airflow_slurm_provider.coordinator.spec.site import parse_site
from airflow_slurm_provider.slurm.accounting import JobRecord
from airflow_slurm_provider.slurm.array_state import ArrayKey, Element, merge_arrays
from airflow_slurm_provider.slurm.client import SubmissionCancelledError, SubmitLimitError
from airflow_slurm_provider.slurm.states import ElementState
from airflow_slurm_provider.slurm.submission import guarded
from slurm_worker.errors import ServiceError
from slurm_worker.testing import ManualClock, MemoryObjects, MemoryRows
from tests.unit.world import World

SITE = {
    "storage": {"table": "t", "prefix": "s3://lab/lab"},
    "cluster": {"transport": "local"},
}


def state_of(error_class: str) -> ElementState:
    """A state of Slurm's that means this class."""
    meaning = {state.error_class.value: state for state in ElementState if state.error_class}
    return meaning[error_class]


@dataclass
class FakeArray:
    alive: int = 1
    unknown: bool = False
    slurm_job_id: str = "100"
    dead: dict[str, int] = field(default_factory=dict)

    def lost(self) -> dict[str, int]:
        return dict(self.dead)

    @property
    def running(self) -> int:
        return self.alive

    @property
    def elements(self) -> dict[int, Element]:
        died = [state_of(name) for name, count in self.dead.items() for _ in range(count)]
        states = [ElementState.RUNNING] * self.alive + died
        return {n: Element(each) for n, each in enumerate(states)}

    def counts(self) -> dict[str, int]:
        return {"RUNNING": self.alive} if self.alive else {"COMPLETED": 1}


@dataclass
class FakeSlurm:
    """`slurm.client.SlurmClient`, as far as the coordinator uses it."""

    arrays: dict[str, str] = field(default_factory=dict)
    withdrawn: set[str] = field(default_factory=set)
    scripts: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    state: FakeArray = field(default_factory=FakeArray)
    refuse: Exception | None = None
    secrets: dict[str, bytes] = field(default_factory=dict)
    room: int = 1_000_000
    array_size: int = 1001
    lose_reply: bool = False
    ended: list[JobRecord] = field(default_factory=list)
    accounted: list[list[str]] = field(default_factory=list)
    states: dict[str, FakeArray] = field(default_factory=dict)
    words: str = ""

    def version(self) -> str:
        return "22.05.8"

    def put_secret(self, folder: str, name: str, data: bytes) -> str:
        self.secrets[name] = data
        return f"/home/lab/.airflow-slurm/jobs/{folder}/{name}"

    def max_array_size(self) -> int:
        return self.array_size

    def put_file(self, name: str, data: bytes) -> str:
        return f"/home/lab/.airflow-slurm/{name}"

    def submit(self, name: str, script: str, folder: str) -> str:
        if self.refuse:
            raise self.refuse
        if name in self.withdrawn:
            raise SubmissionCancelledError(name)
        if name not in self.arrays:
            elements = 1 + int(re.findall(r"--array=0-(\d+)", script)[0])
            if elements > self.room:
                raise SubmitLimitError("AssocMaxSubmitJobLimit")
            self.room -= elements
            self.arrays[name] = str(100 + len(self.arrays))
            self.scripts.append(guarded(script))
        if self.lose_reply:
            self.lose_reply = False
            raise ServiceError("connection lost")
        return self.arrays[name]

    def find(self, names: Collection[str]) -> dict[str, str]:
        return {name: self.arrays[name] for name in names if name in self.arrays}

    def names(self, slurm_job_ids: Collection[str], prefix: str) -> dict[str, str]:
        ids = {job: name for name, job in self.arrays.items() if name.startswith(prefix)}
        return {job: name for job, name in ids.items() if job in slurm_job_ids}

    def withdraw(self, names: Collection[str], folder: str) -> dict[str, str]:
        found = self.find(names)
        self.withdrawn |= set(names) - set(found)
        return found

    def array(self, array: ArrayKey) -> FakeArray:
        return self.states.get(array.slurm_job_id, self.state)

    def together(self, arrays: Sequence[ArrayKey]) -> Any:
        return merge_arrays([self.array(key) for key in arrays])  # type: ignore[misc]  # look-alikes

    def output(self, name: str, folder: str, element: int, lines: int) -> str:
        return self.words or f"the end of {folder} {element}\n"

    def script(self, name: str, folder: str) -> str:
        return self.scripts[list(self.arrays).index(name)]

    def records(self, arrays: Collection[ArrayKey]) -> list[JobRecord]:
        self.accounted.append([key.slurm_job_id for key in arrays])
        return self.ended

    def cancel(self, arrays: Collection[ArrayKey]) -> list[ArrayKey]:
        """By name, as the real one."""
        found = [ArrayKey(job, name) for name, job in self.find({e.name for e in arrays}).items()]
        alive = sorted(key for key in found if self.array(key).alive)
        self.cancelled += [key.slurm_job_id for key in alive]
        return alive

    def end(self, name: str, folder: str) -> None:
        self.withdraw([name], folder)
        self.cancel([ArrayKey("", name)])

    def close(self) -> None:
        pass


def no_sts() -> Any:
    raise AssertionError("no role is named, so STS gets no request")


def services(slurm: FakeSlurm | None = None) -> Services:
    objects = MemoryObjects()
    return Services(
        site=parse_site(SITE, "site"),
        rows=MemoryRows(),
        objects=objects,
        slurm=slurm or FakeSlurm(),  # type: ignore[arg-type]  # the fake has its verbs
        clock=ManualClock(),
        bucket=lambda _name: objects,
        sts=no_sts,
    )


def world_of(services: Services, config: Config, scratch: Path, handle: Any) -> World:
    """A world whose workers run the job that was submitted."""
    row = services.jobs(config.spec.id).get()
    return World(
        scratch,
        handle,
        rows=services.rows,
        objects=services.objects,
        clock=services.clock,  # type: ignore[arg-type]  # it is the manual one
        shards=row.shards,
        job=config.spec.id,
    )


def make_config(folder: Path, items: int = 50, **changes: Any) -> Config:
    """A job of numbered items beside a handler, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f'{{"id": "k{n}", "n": {n}}}' for n in range(items)]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "handler.py").write_text("def handle(item, context):\n    return item\n")
    raw = {
        "job_id": "job-1",
        "input": {"path": str(folder / "items.jsonl"), "key": "id"},
        "bundle": 5,
        "workers": 3,
        "handler": {"entry": "handler:handle", "code": str(folder)},
        **changes,
    }
    return load_config(raw)

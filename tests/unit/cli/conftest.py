"""`slurmctl` in this process, on a table, a bucket and a cluster in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from moto import mock_aws

from airflow_slurm_provider.cli.app import run
from airflow_slurm_provider.coordinator import services as services_module
from airflow_slurm_provider.coordinator.services import Services
from airflow_slurm_provider.coordinator.spec.site import Site, load_site
from airflow_slurm_provider.slurm.accounting import JobRecord
from airflow_slurm_provider.slurm.array_state import ArrayKey, ArrayState, Element, merge_arrays
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.errors import ItemError, ServiceError
from slurm_worker.testing import ManualClock
from tests.unit.coordinator.fakes import no_sts
from tests.unit.world import World

ITEMS = 25
BUNDLE = 10


@dataclass
class FakeSlurm:
    """A cluster in memory: arrays live until `end` or `cancel`, and run nothing by themselves."""

    arrays: dict[str, ArrayState] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    away: int = 0
    ended: list[JobRecord] = field(default_factory=list)

    def max_array_size(self) -> int:
        self._answer()
        return 1001

    def version(self) -> str:
        self._answer()
        return "slurm 22.05"

    def put_file(self, name: str, data: bytes) -> str:
        return f"/home/user/{name}"

    def submit(self, name: str, script: str, folder: str) -> str:
        self._answer()
        self.names.append(name)
        slurm_job_id = str(100 + len(self.names))
        running = Element(ElementState.RUNNING, node="n1")
        self.arrays[slurm_job_id] = ArrayState(slurm_job_id, {0: running, 1: running}, 2)
        return slurm_job_id

    def find(self, names: Collection[str]) -> dict[str, str]:
        self._answer()
        return {name: str(101 + n) for n, name in enumerate(self.names) if name in names}

    def withdraw(self, names: Collection[str], folder: str) -> dict[str, str]:
        return self.find(names)

    def array(self, array: ArrayKey) -> ArrayState:
        return self.together([array])

    def together(self, arrays: Sequence[ArrayKey]) -> ArrayState:
        self._answer()
        return merge_arrays([self.arrays[key.slurm_job_id] for key in arrays])

    def output(self, name: str, folder: str, element: int, lines: int) -> str:
        self._answer()
        return f"the end of {element}\n"

    def records(self, arrays: Collection[ArrayKey]) -> list[JobRecord]:
        self._answer()
        return self.ended

    def cancel(self, arrays: Collection[ArrayKey]) -> list[ArrayKey]:
        ids = self.find({array.name for array in arrays})
        found = [ArrayKey(job, name) for name, job in ids.items() if self.arrays[job].alive]
        for array in found:
            self.end(array.slurm_job_id, "CANCELLED")
        return found

    def end(self, slurm_job_id: str, state: str) -> None:
        ended = Element(ElementState(state))
        elements = dict.fromkeys(self.arrays[slurm_job_id].elements, ended)
        self.arrays[slurm_job_id] = ArrayState(slurm_job_id, elements)

    def close(self) -> None:
        pass

    def _answer(self) -> None:
        if self.away:
            self.away -= 1
            raise ServiceError("the login node is away")


class EventfulClock(ManualClock):
    """A clock on which something happens while somebody sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Callable[[], object]] = []
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        super().sleep(seconds)
        if self.events:
            self.events.pop(0)()


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def fields(self) -> dict[str, str]:
        return dict(line.split(": ", 1) for line in self.out.splitlines())


@dataclass
class Cli:
    """Runs commands, and the workers that they submit when told to."""

    world: World
    slurm: FakeSlurm
    clock: EventfulClock
    config: Path
    capsys: pytest.CaptureFixture[str]
    services: Services
    enter_aws: Callable[[], object]

    def __call__(self, *arguments: str | Path) -> Ended:
        self.capsys.readouterr()
        code = run([str(word) for word in arguments])
        out, err = self.capsys.readouterr()
        return Ended(int(code), out, err)

    def submit(self, *arguments: str) -> Ended:
        return self("submit", self.config, *arguments)

    def work(self) -> None:
        """Let one worker process all tasks, and end the arrays."""
        self.world.worker().run()
        for slurm_job_id, array in self.slurm.arrays.items():
            if array.alive:
                self.slurm.end(slurm_job_id, "COMPLETED")


@dataclass
class Handler:
    """Fails k1 with bad_input, and k2 with a network error until it is cured."""

    cured: bool = False

    def __call__(self, item: dict[str, Any], context: Any) -> dict[str, Any]:
        if item["n"] == 1:
            raise ItemError("bad_input", "one is wrong")
        if item["n"] == 2 and not self.cured:
            raise ItemError("network", "connection reset")
        return {"double": 2 * item["n"]}


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
def cli(
    tmp_path: Path,
    handler: Handler,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Cli]:
    clock, slurm = EventfulClock(), FakeSlurm()
    world = World(tmp_path / "node", handle=handler, bundle=BUNDLE, clock=clock)

    def open_services(site: Site) -> Services:
        return Services(
            site=site,
            rows=world.rows,
            objects=world.objects,
            slurm=slurm,  # type: ignore[arg-type]  # a twin with the same verbs
            clock=clock,
            bucket=lambda _name: world.objects,
            sts=no_sts,
        )

    monkeypatch.setattr(services_module, "open_services", open_services)
    site = tmp_path / "site.yaml"
    site.write_text("storage: {table: t, prefix: s3://bucket/lab}\ncluster: {transport: local}\n")
    monkeypatch.setenv("SLURMCTL_CONFIG", str(site))
    services = open_services(load_site(site))
    with ExitStack() as aws:

        def enter_aws() -> None:
            """An AWS without anything in it, for what makes clients of its own."""
            empty_aws(monkeypatch)
            aws.enter_context(mock_aws())

        yield Cli(world, slurm, clock, write_config(tmp_path), capsys, services, enter_aws)


def empty_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clear the SDK's variables, which may name a real account or endpoint."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_DYNAMODB", raising=False)


def write_config(folder: Path, **changes: Any) -> Path:
    """A good job of `ITEMS` items; `changes` replace its top-level settings."""
    lines = [json.dumps({"id": f"k{n}", "n": n}) for n in range(ITEMS)]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "handler.py").write_text("def handle(item, context):\n    return dict(item)\n")
    config: dict[str, Any] = {
        "job_id": "job-1",
        "input": {"path": "items.jsonl", "key": "id"},
        "bundle": BUNDLE,
        "workers": 2,
        "handler": {"entry": "handler:handle", "code": "."},
        **changes,
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return path

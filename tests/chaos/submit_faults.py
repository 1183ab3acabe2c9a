"""Submit a job again and again, dying before or after each request in turn.

A *point* is the moment before or after one call of the table, the bucket or the cluster. At
a point the submitting process is killed, or, where the call goes to the cluster, its SSH
connection is cut instead. Then somebody submits the same job undisturbed; afterwards
Slurm must know exactly one array of the job.

    python -m tests.chaos.submit_faults [--points N] [--seed S]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.services import open_services, open_transport
from airflow_slurm_provider.coordinator.spec.job_spec import Config, load_config
from airflow_slurm_provider.coordinator.spec.site import load_site
from airflow_slurm_provider.slurm.client import SlurmClient
from airflow_slurm_provider.slurm.transport import CommandResult, Transport
from slurm_worker.errors import ServiceError
from tests.stack.demo import read_environment

_DEADLINE_S = 150.0
_CUT = 3  #: exit code of a submit whose connection was cut: it may be run again


@dataclass(frozen=True)
class Point:
    """Where a submit is disturbed: the n-th moment, counted from 1; 0 for nowhere."""

    number: int
    cut: bool = False


class Faults:
    """Counts moments, and strikes at one of them."""

    def __init__(self, point: Point) -> None:
        self.point = point
        self.seen = 0
        self.of_cluster: list[int] = []

    def strike(self, cut: Callable[[], None] | None = None) -> None:
        self.seen += 1
        if cut is not None:
            self.of_cluster.append(self.seen)
        if self.seen != self.point.number:
            return
        if self.point.cut and cut is not None:
            cut()
        else:
            os.kill(os.getpid(), signal.SIGKILL)


class Struck:
    """An edge whose every call is a moment before and a moment after."""

    def __init__(self, edge: Any, faults: Faults) -> None:
        self._edge = edge
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._edge, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._faults.strike()
            result = method(*args, **kwargs)
            if isinstance(result, Iterator):
                result = iter(list(result))
            self._faults.strike()
            return result

        return call


class StruckTransport:
    """The way to the cluster, whose connection can be cut besides."""

    def __init__(self, transport: Transport, faults: Faults) -> None:
        self._transport = transport
        self._faults = faults

    def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
        self._faults.strike(self._transport.close)
        result = self._transport.run(command, stdin, timeout)
        self._faults.strike(self._lose_reply)
        return result

    def close(self) -> None:
        self._transport.close()

    def _lose_reply(self) -> None:
        self._transport.close()
        raise ServiceError("the connection was cut before the answer came")


def submit(config: Config, point: Point) -> Faults:
    """Submit in this process, disturbed at a point."""
    faults = Faults(point)
    site = load_site(os.environ["SLURMCTL_CONFIG"])
    transport = StruckTransport(open_transport(site.cluster), faults)
    opened = open_services(site, slurm=SlurmClient(transport, site.cluster.remote_dir))
    services = replace(
        opened, rows=Struck(opened.rows, faults), objects=Struck(opened.objects, faults)
    )
    try:
        api.submit(services, config, log=lambda _: None)
    finally:
        opened.close()
    return faults


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a fork of this process; its exit code, negative where a signal ended it."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except ServiceError:
            os._exit(_CUT)
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def make_job(folder: Path) -> Config:
    """A small job of its own name."""
    name = f"faults-{uuid.uuid4().hex[:8]}"
    place = folder / name
    place.mkdir()
    (place / "items.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n')
    (place / "handler.py").write_text("def handle(item, context):\n    return item\n")
    return load_config(
        {
            "job_id": name,
            "input": {"path": str(place / "items.jsonl"), "key": "id"},
            "bundle": 1,
            "handler": {"entry": "handler:handle", "code": str(place)},
        }
    )


def arrays_of(job_id: str) -> set[str]:
    """The arrays that Slurm has ever had of a job: queue and accounting."""
    queue = ["squeue", "-h", "-t", "all", "-o", "%F|%j"]
    records = ["sacct", "-nXP", "-a", "-S", "now-1days", "-o", "JobID,JobName"]
    found = set()
    for command in (queue, records):
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        for line in said.stdout.splitlines():
            number, _, name = line.partition("|")
            if name.startswith(f"{job_id}."):
                found.add(number.partition("_")[0])
    return found


def try_point(folder: Path, point: Point) -> str:
    """Disturb a submit at a point and submit again undisturbed; return a problem, if any."""
    config = make_job(folder)
    code = in_child(lambda: submit(config, point))
    if code not in (-signal.SIGKILL, _CUT, 0):
        return f"the disturbed submit ended with {code}"
    deadline = time.monotonic() + _DEADLINE_S
    while (code := in_child(lambda: submit(config, Point(0)))) == _CUT:
        if time.monotonic() > deadline:
            return "submit did not go through again"
    if code:
        return f"the next submit ended with {code}"
    services = open_services(load_site(os.environ["SLURMCTL_CONFIG"]))
    try:
        rows = services.jobs(config.spec.id).submissions()
    finally:
        services.close()
    noted = {slurm_job_id for each in rows for slurm_job_id in each.slurm_job_ids}
    known = arrays_of(config.spec.job_id)
    if len(rows) != 1 or noted != known or len(known) != 1:
        return f"Slurm knows the arrays {sorted(known)}, the table {sorted(noted)}"
    return ""


def all_points(folder: Path) -> list[Point]:
    """Every moment of a submit; those at the cluster also with a cut connection."""
    read, write = os.pipe()

    def count() -> None:
        faults = submit(make_job(folder), Point(0))
        os.write(write, json.dumps([faults.seen, faults.of_cluster]).encode())

    assert in_child(count) == 0, "an undisturbed submit goes through"
    seen, of_cluster = json.loads(os.read(read, 65536))
    kills = [Point(number) for number in range(1, seen + 1)]
    return kills + [Point(number, cut=True) for number in of_cluster]


def run(count: int, seed: int, say: Callable[[str], None]) -> list[str]:
    """Try so many points, each moment as often as any other; what was wrong."""
    rng = random.Random(seed)
    problems = []
    with tempfile.TemporaryDirectory(prefix="submit-faults-") as name:
        points = all_points(Path(name))
        cuts = sum(point.cut for point in points)
        say(f"a submit has {len(points) - cuts} moments, {cuts} of them at the cluster")
        order = itertools.chain.from_iterable(
            rng.sample(points, len(points)) for _ in itertools.count()
        )
        for number, point in enumerate(itertools.islice(order, count), 1):
            problem = try_point(Path(name), point)
            if problem:
                problems.append(f"{point}: {problem}")
                say(problems[-1])
            if number % 20 == 0:
                say(f"{number} of {count} points, {len(problems)} problems")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    os.environ.update(read_environment())
    began = time.monotonic()
    problems = run(arguments.points, arguments.seed, lambda line: print(line, flush=True))
    took = time.monotonic() - began
    print(f"{arguments.points} points, {len(problems)} problems, {took:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

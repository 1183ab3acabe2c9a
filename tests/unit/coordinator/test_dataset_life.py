"""A published manifest names files that exist, wherever and however long a process pauses."""

from __future__ import annotations

import itertools
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from airflow_slurm_provider.coordinator import api
from airflow_slurm_provider.coordinator.maintenance.gc import collect
from airflow_slurm_provider.coordinator.services import Services
from slurm_worker.aggregate import AggregateOptions, Manifest, RoundSummary, aggregate
from slurm_worker.errors import ErrorClass, ItemError
from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.ports import ObjectStore
from slurm_worker.testing import ManualClock, MemoryObjects
from tests.unit.coordinator.fakes import make_config, services, world_of
from tests.unit.coordinator.paced import DAY_S, Bucket, Process

JOB = JobId("job-1")
GRACE_S = 7 * DAY_S
#: More requests for datasets than any process here makes.
MANY = 40
#: How processes are laid out: other row groups make other files.
LAYOUTS = {name: AggregateOptions(row_group_size=size, rows_per_file=20)
           for name, size in {"a": 10, "b": 20, "c": 30, "d": 40, "e": 50}.items()}  # fmt: skip


@dataclass
class Lab:
    """A finished job whose results processes publish and collect, as the test has them."""

    edges: Services
    bucket: Bucket

    def aggregation(self, layout: str) -> Process:
        return Process(self.bucket, lambda store: publish(store, self.bucket, layout))

    def gc(self, older_than_s: float = GRACE_S) -> Process:
        def act(store: ObjectStore) -> Any:
            edges = replace(self.edges, objects=store)
            return collect(edges, JOB, older_than_s=older_than_s, log=lambda _: None)

        return Process(self.bucket, act)

    def start(self, kind: str) -> Process:
        return self.gc() if kind == "gc" else self.aggregation(kind)

    def wait(self, seconds: float = GRACE_S + DAY_S) -> None:
        """Time goes by; promises end, and files grow old."""
        self.bucket.now += seconds
        assert isinstance(self.edges.clock, ManualClock)
        self.edges.clock.advance(seconds)

    def run(self, kind: str) -> Any:
        process = self.start(kind)
        process.finish()
        assert process.error is None
        return process.result

    def kept_its_promises(self, *processes: Process) -> None:
        assert self.bucket.broken == []
        assert [process.error for process in processes] == [None] * len(processes)
        folders = {publication.manifest["folder"] for publication in self.bucket.published}
        results = [process.result for process in processes if isinstance(process.result, Manifest)]
        assert {result.folder for result in results} <= folders, (
            "a success was reported and not published"
        )

    def can_be_tidied(self) -> None:
        for layout in ("d", "e"):
            self.wait()
            self.run(layout)
        self.wait()
        self.run("gc")
        assert self.bucket.unnamed() == set()
        assert self.bucket.broken == []


def publish(store: ObjectStore, bucket: Bucket, layout: str) -> Manifest:
    with tempfile.TemporaryDirectory() as scratch:
        return aggregate(
            store,
            bucket.paths,
            [RoundSummary(0, 2, 50)],
            LAYOUTS[layout],
            Path(scratch),
            lambda _: None,
        )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Services, Bucket]:
    """A job that is done, before anything is published."""
    edges = services()
    folder = tmp_path_factory.mktemp("job")
    config = make_config(folder / "config", bundle=25)
    api.submit(edges, config, log=lambda _: None)

    def handle(item: dict[str, Any], _context: object) -> dict[str, Any]:
        if item["n"] == 7:
            raise ItemError(ErrorClass.BAD_INPUT, "no seventh")
        return item

    world_of(edges, config, folder / "node", handle).worker().run()
    assert isinstance(edges.objects, MemoryObjects)
    bucket = Bucket(edges.paths(JOB), GRACE_S, edges.objects)
    for key in bucket.objects.objects:
        bucket.objects.modified[key] = bucket.now
    return edges, bucket


@pytest.fixture
def lab_of(finished: tuple[Services, Bucket]) -> Callable[[str], Lab]:
    """A new lab in which these layouts were published before, one after the other."""
    made: dict[str, Bucket] = {}

    def make(before: str) -> Lab:
        edges, bucket = finished
        if before not in made:
            lab = Lab(replace(edges, clock=ManualClock()), bucket.copy())
            for layout in before:
                lab.run(layout)
            made[before] = lab.bucket
        standing = made[before].copy()
        return Lab(replace(edges, clock=ManualClock(standing.now)), standing)

    return make


#: Two processes, and what was published before them.
PAIRS = [
    *itertools.product(["a"], ["gc"], ["", "c", "abc", "bac"]),
    *itertools.product(["gc"], ["a"], ["c", "abc", "bac"]),
    *itertools.product(["a"], ["b"], ["", "bac"]),
    ("a", "a", "c"),
    ("gc", "gc", "abc"),
]


@pytest.mark.parametrize(("first", "second", "before"), PAIRS)
def test_two_processes_stopped_anywhere_break_no_promise(
    lab_of: Callable[[str], Lab], first: str, second: str, before: str
) -> None:
    for cut in range(MANY):
        for other in range(MANY):
            lab = lab_of(before)
            one = lab.start(first)
            ended = one.run_to(cut)
            lab.wait()
            two = lab.start(second)
            both_ended = two.run_to(other)
            lab.wait()
            one.finish()
            lab.wait()
            two.finish()
            lab.kept_its_promises(one, two)
            if both_ended:
                break
        if ended:
            return
    pytest.fail("more requests than were tried")


@pytest.mark.parametrize("seed", range(40))
def test_many_processes_in_any_order_break_no_promise(
    lab_of: Callable[[str], Lab], seed: int
) -> None:
    rng = random.Random(seed)
    lab = lab_of(rng.choice(["", "c", "abc"]))
    kinds = ["gc", "gc", "a", "b", rng.choice("abc"), rng.choice("abc")]
    processes = [lab.start(kind) for kind in kinds]
    steps = dict.fromkeys(range(len(processes)), 0)
    left = set(steps)
    while left:
        chosen = rng.choice(sorted(left))
        steps[chosen] += rng.randint(1, 4)
        if processes[chosen].run_to(steps[chosen]):
            left.discard(chosen)
        lab.wait(rng.choice([0, 60, DAY_S, GRACE_S + DAY_S]))
    lab.kept_its_promises(*processes)
    lab.can_be_tidied()


@pytest.mark.parametrize("cut", range(MANY))
def test_files_of_a_killed_process_are_deleted_in_the_end(
    lab_of: Callable[[str], Lab], cut: int
) -> None:
    for kind, before in itertools.product(["a", "gc"], ["", "c", "abc"]):
        lab = lab_of(before)
        killed = lab.start(kind)
        killed.run_to(cut)
        lab.can_be_tidied()


def test_gc_alone_deletes_the_files_of_an_interrupted_aggregation(
    lab_of: Callable[[str], Lab],
) -> None:
    lab = lab_of("ab")
    killed = lab.start("c")
    while len(lab.bucket.unnamed()) < 2:
        killed.run_to(killed.store.made + 1)
    lab.run("gc")
    assert lab.bucket.unnamed(), "it may be at work"
    lab.wait()
    lab.run("gc")
    assert lab.bucket.unnamed() == set()
    killed.finish()
    lab.kept_its_promises(killed)


def test_the_promise_to_readers_counts_publications_and_time_since_retirement(
    lab_of: Callable[[str], Lab],
) -> None:
    lab = lab_of("a")
    first = lab.bucket.published[0]
    lab.wait()
    lab.run("b")
    lab.wait()
    lab.run("gc")
    assert present(lab, first), "it stays until the publication after the next"
    lab.run("c")
    lab.wait()
    lab.run("gc")
    assert not present(lab, first)

    third = lab.bucket.published[2]
    lab.run("d")
    lab.run("e")
    lab.wait(GRACE_S / 2)
    lab.run("gc")
    assert present(lab, third), "its files are old, and it was replaced a short time ago"
    lab.wait(GRACE_S / 2 + DAY_S)
    lab.run("gc")
    assert not present(lab, third)


def present(lab: Lab, publication: Any) -> bool:
    return any(file["key"] in lab.bucket.objects.objects for file in publication.files)


def test_files_of_a_manifest_of_an_older_release_are_kept_as_promised(
    lab_of: Callable[[str], Lab],
) -> None:
    lab = lab_of("ab")
    old = rewrite_as_of_an_older_release(lab)
    lab.wait()
    lab.run("gc")
    assert all(key in lab.bucket.objects.objects for key in old), "who reads the last two versions"
    lab.run("c")
    lab.run("gc")
    assert all(key in lab.bucket.objects.objects for key in old)
    lab.can_be_tidied()


def rewrite_as_of_an_older_release(lab: Lab) -> list[str]:
    """The two versions that stand, as an older release would have published them."""
    objects, paths = lab.bucket.objects, lab.bucket.paths
    moved: dict[str, str] = {}
    for place, each in enumerate(lab.bucket.published):
        version = each.manifest["folder"].rstrip("/").rpartition("/")[2]
        for file in each.files:
            moved[file["key"]] = file["key"].replace(version, each.manifest["inputs"][:16])
            objects.objects[moved[file["key"]]] = objects.objects.pop(file["key"])
            file["key"] = moved[file["key"]]
        each.manifest["folder"] = paths.dataset + each.manifest["inputs"][:16] + "/"
        assert place < 2
    standing = dict(lab.bucket.published[-1].manifest)
    standing.pop("number", None)
    standing.pop("retired", None)
    objects.put(paths.manifest, json.dumps(standing).encode())
    objects.modified = dict.fromkeys(objects.objects, lab.bucket.now)
    return list(moved.values())


def test_a_store_that_ignores_conditions_keeps_all_files_and_the_later_manifest(
    lab_of: Callable[[str], Lab],
) -> None:
    lab = lab_of("ab")
    objects = lab.bucket.objects

    def put_if(key: str, body: bytes, _tag: str) -> bool:
        objects.put(key, body)
        return True

    objects.put_if = put_if  # type: ignore[method-assign]
    slow = lab.start("c")
    slow.run_to(2)
    lab.run("d")
    lab.run("e")
    lab.wait()
    slow.finish()
    lab.wait()
    lab.run("gc")
    lab.kept_its_promises(slow)
    assert len(lab.bucket.published) == 5
    assert all(present(lab, publication) for publication in lab.bucket.published)

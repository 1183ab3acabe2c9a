"""The bundle that a job gets where its config names none."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_slurm_provider.coordinator import api, spec_store
from airflow_slurm_provider.coordinator.costs import dry_run
from airflow_slurm_provider.coordinator.planning.bundle_size import (
    LARGEST,
    SMALLEST,
    bundle_for,
    estimate_items,
)
from airflow_slurm_provider.coordinator.spec.input_section import InputSection
from slurm_worker.errors import UserError
from slurm_worker.protocol.ports import ObjectStore
from slurm_worker.testing import MemoryObjects
from tests.unit.coordinator.fakes import FakeSlurm, make_config, services


def log(_line: str) -> None:
    pass


@pytest.mark.parametrize(
    ("items", "workers", "bundle"),
    [
        (10**6, 100, 312),
        (10**8, 10_000, 762),
        (10**9, 10_000, LARGEST),
        (10**6, 1, LARGEST),
        (10_000, 100, 25),
        (100_000, 100, SMALLEST),
        (100, 10, 3),
        (1, 10, 1),
        (0, 1, 1),
    ],
)
def test_tasks_are_large_but_no_worker_has_too_few(items: int, workers: int, bundle: int) -> None:
    assert bundle_for(items, workers) == bundle


def spec(path: str | Path) -> InputSection:
    return InputSection(path=str(path), key="id")


def no_bucket(name: str) -> ObjectStore:
    raise AssertionError(f"{name} is not asked for")


def lines(count: int) -> bytes:
    return b"".join(json.dumps({"id": f"k{n}", "n": n % 10}).encode() + b"\n" for n in range(count))


def test_the_rows_of_a_parquet_file_are_in_its_footer(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [str(n) for n in range(5_000)]}), tmp_path / "a.parquet")
    assert estimate_items(spec(tmp_path / "a.parquet"), no_bucket) == 5_000
    store = MemoryObjects()
    store.upload("in/a.parquet", str(tmp_path / "a.parquet"))
    assert estimate_items(spec("s3://lab/in/a.parquet"), lambda _: store) == 5_000


def test_a_small_text_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(100))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(100)))
    (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress(lines(100)))
    (tmp_path / "d.json").write_text(json.dumps([{"id": n, "of": [{}, {}]} for n in range(100)]))
    assert estimate_items(spec(tmp_path / "c.jsonl.xz"), no_bucket) == 100
    assert estimate_items(spec(tmp_path / "d.json"), no_bucket) == 100
    assert estimate_items(spec(tmp_path / "a.jsonl"), no_bucket) == 100
    assert estimate_items(spec(tmp_path / "b.jsonl.gz"), no_bucket) == 100


def test_the_lines_of_a_large_text_are_estimated_from_its_beginning(tmp_path: Path) -> None:
    count = 200_000
    (tmp_path / "a.jsonl").write_bytes(lines(count))
    assert estimate_items(spec(tmp_path / "a.jsonl"), no_bucket) == pytest.approx(count, rel=0.1)


@pytest.mark.parametrize("writer", [pa.ipc.new_file, pa.ipc.new_stream])
def test_the_rows_of_an_arrow_file_are_estimated_from_its_first_batches(
    tmp_path: Path, writer: Any
) -> None:
    table = pa.table({"id": [f"{n:09}" for n in range(200_000)]})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, writer(sink, table.schema) as file:
        file.write_table(table, max_chunksize=1_000)
    found = estimate_items(spec(tmp_path / "a.arrow"), no_bucket)
    assert found == pytest.approx(200_000, rel=0.1)


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress])
def test_the_lines_of_a_large_compressed_text_are_estimated(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    text = b"".join(b'{"id": "%s"}\n' % os.urandom(8).hex().encode() for _ in range(200_000))
    (tmp_path / "a.jsonl").write_bytes(compress(text))
    found = estimate_items(spec(tmp_path / "a.jsonl"), no_bucket)
    assert found == pytest.approx(200_000, rel=0.2)


@pytest.mark.parametrize("name", ["absent.jsonl", "bad.parquet", "bad.jsonl.gz", "empty.csv"])
def test_what_cannot_be_read_counts_as_empty(name: str, tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"\x1f\x8b no gzip")
    (tmp_path / "empty.csv").write_bytes(b"")
    assert estimate_items(spec(tmp_path / name), no_bucket) == 0


def test_a_job_without_a_bundle_gets_one_from_its_size_and_keeps_it(tmp_path: Path) -> None:
    edges = services(FakeSlurm())
    config = make_config(tmp_path, items=960, bundle=None, workers=3)
    planned = dry_run.estimate(edges, config)
    submitted = api.submit(edges, config, log=log)
    assert planned.bundle == SMALLEST
    assert submitted.tasks == planned.tasks == 20
    job_id = config.spec.id
    assert spec_store.read_spec(edges, edges.jobs(job_id).get()).bundle == SMALLEST
    more = make_config(tmp_path, items=960, bundle=None, workers=30)
    again = api.submit(edges, more, log=log)
    assert (again.tasks, again.reattached) == (20, True)
    assert spec_store.read_spec(edges, edges.jobs(job_id).get()).bundle == SMALLEST


def test_no_bundle_is_named_for_an_input_that_does_not_exist(tmp_path: Path) -> None:
    lines: list[str] = []
    config = make_config(tmp_path, bundle=None)
    Path(config.spec.input.path).unlink()
    with pytest.raises(UserError, match=r"input\.path: the file .* does not exist"):
        api.submit(services(FakeSlurm()), config, log=lines.append)
    assert lines == []


def test_another_bundle_under_the_same_id_is_refused(tmp_path: Path) -> None:
    edges = services(FakeSlurm())
    api.submit(edges, make_config(tmp_path, bundle=5), log=log)
    api.submit(edges, make_config(tmp_path, bundle=None), log=log)
    with pytest.raises(UserError, match="bundle: 'job-1' exists with 5 items per task, not 7"):
        api.submit(edges, make_config(tmp_path, bundle=7), log=log)

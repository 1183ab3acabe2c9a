"""Files without a job become a dataset as strictly as a job's parts do."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from slurm_worker.aggregate.errors import AggregationError
from slurm_worker.aggregate.files.merge import merge_files
from slurm_worker.aggregate.files.sources import Source, Sources
from slurm_worker.aggregate.options import AggregateOptions
from slurm_worker.backends.local import FolderObjects
from slurm_worker.errors import UserError
from slurm_worker.testing import MemoryObjects

CUT_SHORT = gzip.compress(b'{"a": 1}\n', mtime=0)[:-9]
ROWS = [{"id": n, "city": ["Lima", "Oslo"][n % 2], "score": n / 4} for n in range(1_000)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def local_sources(path: Path, scratch: Path) -> list[Source]:
    sources = Sources(scratch)
    sources.add_local(path)
    return sources.found


def merge(
    folder: Path, out: Path, chunk_bytes: int = 4 << 20, **options: Any
) -> list[dict[str, Any]]:
    """Merge what is in `folder`, and read the dataset."""
    scratch = out.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    sources = local_sources(folder, scratch)
    seen: list[tuple[int, int]] = []
    dataset = merge_files(
        sources,
        FolderObjects(out),
        "",
        AggregateOptions(**options),
        scratch,
        lambda done, total: seen.append((done, total)),
        chunk_bytes,
    )
    assert seen[-1][0] == seen[-1][1]
    assert list(scratch.iterdir()) == []
    assert sum(file.rows for file in dataset.files) == dataset.rows
    return [row for file in dataset.files for row in pq.read_table(out / file.key).to_pylist()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "in"
    made.mkdir()
    return made


def test_files_of_all_forms_are_merged_in_order_of_their_names(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "a.jsonl").write_bytes(lines(ROWS[:300]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[300:500])))
    (folder / "sub").mkdir()
    with closing(sqlite3.connect(folder / "sub" / "c.sqlite")) as db:
        db.execute("CREATE TABLE results (id INTEGER, city TEXT, score REAL)")
        db.executemany("INSERT INTO results VALUES (:id, :city, :score)", ROWS[500:])
        db.commit()
    (folder / "notes.txt").write_text("not a result")
    assert merge(folder, tmp_path / "out") == ROWS


def test_a_deleted_file_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "a.jsonl").write_bytes(lines(ROWS))
    sources = local_sources(folder, tmp_path)
    (folder / "a.jsonl").unlink()
    with pytest.raises(AggregationError, match=r"a\.jsonl can't be read: .*; correct it, or leave"):
        merge_files(
            sources,
            FolderObjects(tmp_path / "out"),
            "",
            AggregateOptions(),
            tmp_path,
            lambda _done, _total: None,
        )


@pytest.mark.parametrize("manifest", ["{", "[]", "{}"])
def test_an_invalid_manifest_is_never_replaced(folder: Path, tmp_path: Path, manifest: str) -> None:
    (folder / "a.jsonl").write_bytes(lines(ROWS))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "_manifest.json").write_text(manifest)
    with pytest.raises(UserError, match="--output: the folder holds a dataset of other files"):
        merge(folder, tmp_path / "out")
    assert (tmp_path / "out" / "_manifest.json").read_text() == manifest


def test_a_last_line_without_a_line_end_is_a_row(folder: Path, tmp_path: Path) -> None:
    (folder / "a.ndjson").write_bytes(lines(ROWS)[:-1])
    assert merge(folder, tmp_path / "out") == ROWS


def test_a_file_larger_than_a_chunk_is_read_whole(folder: Path, tmp_path: Path) -> None:
    (folder / "a.jsonl").write_bytes(lines(ROWS))
    assert merge(folder, tmp_path / "out", chunk_bytes=1_000) == ROWS


def test_the_dataset_may_be_sorted_and_partitioned(folder: Path, tmp_path: Path) -> None:
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    (folder / "a.jsonl").write_bytes(lines(shuffled))
    assert merge(folder, tmp_path / "out", sort_by=("id",)) == ROWS
    found = merge(folder, tmp_path / "parts", partition_by=("city",), sort_by=("id",))
    assert [row["id"] for row in found] == [*range(0, 1000, 2), *range(1, 1000, 2)]
    assert {path.name for path in (tmp_path / "parts").iterdir()} >= {"city=Lima", "city=Oslo"}


def test_merging_again_changes_nothing_and_other_files_need_another_folder(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "a.jsonl").write_bytes(lines(ROWS))
    merge(folder, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    merge(folder, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")} == before
    (folder / "b.jsonl").write_bytes(lines(ROWS))
    with pytest.raises(UserError, match="holds a dataset of other files or options"):
        merge(folder, tmp_path / "out")


class Meanwhile(FolderObjects):
    """Another run ends right before this one publishes."""

    def __init__(self, root: Path, act: Callable[[], object]) -> None:
        super().__init__(root)
        self.act: Callable[[], object] | None = act

    def put_new(self, key: str, body: bytes) -> bool:
        if self.act is not None:
            act, self.act = self.act, None
            act()
        return super().put_new(key, body)


def test_of_two_runs_into_one_folder_only_the_first_dataset_is_kept(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "a.jsonl").write_bytes(lines(ROWS[:10]))
    sources, out = local_sources(folder, tmp_path), tmp_path / "out"
    (folder / "b.jsonl").write_bytes(lines(ROWS[10:]))
    store = Meanwhile(out, lambda: merge(folder, out))
    with pytest.raises(UserError, match="holds a dataset of other files or options"):
        merge_files(sources, store, "", AggregateOptions(), tmp_path, lambda _done, _total: None)
    manifest = json.loads((out / "_manifest.json").read_text())
    assert manifest["rows"] == len(ROWS)
    files = {file["key"]: file["sha256"] for file in manifest["files"]}
    there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("p*")}
    assert there == files


def test_two_runs_of_the_same_files_into_one_folder_both_succeed(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "a.jsonl").write_bytes(lines(ROWS))
    store = Meanwhile(tmp_path / "out", lambda: merge(folder, tmp_path / "out"))
    merge_files(
        local_sources(folder, tmp_path),
        store,
        "",
        AggregateOptions(),
        tmp_path,
        lambda _done, _total: None,
    )
    assert store.act is None
    assert merge(folder, tmp_path / "out") == ROWS


def test_objects_of_a_bucket_are_merged(tmp_path: Path) -> None:
    objects = MemoryObjects()
    objects.put("runs/1.jsonl", lines(ROWS))
    objects.put("runs/readme.md", b"")
    sources = Sources(tmp_path)
    sources.add_stored(objects, "lab", "runs/")
    dataset = merge_files(
        sources.found, objects, "out/", AggregateOptions(), tmp_path, lambda _done, _total: None
    )
    assert (dataset.rows, dataset.sources) == (1_000, 1)
    assert json.loads(objects.objects["out/_manifest.json"])["rows"] == 1_000


def write_tables(path: Path) -> None:
    with closing(sqlite3.connect(path / "a.db")) as db:
        db.execute("CREATE TABLE one (a)")
        db.execute("CREATE TABLE two (a)")


def write_blob(path: Path) -> None:
    with closing(sqlite3.connect(path / "a.db")) as db:
        db.execute("CREATE TABLE one (a)")
        db.execute("INSERT INTO one VALUES (x'00ff')")
        db.commit()


def writing(name: str, data: bytes) -> Any:
    return lambda path: (path / name).write_bytes(data)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (writing("a.jsonl", b'{"a": 1}\n{"a": "x"}\n'), "a string where others have an int"),
        (
            writing("a.jsonl", b'{"a": 1}\nnonsense\n'),
            "a.jsonl can't be read: line 2: is not JSON: Expecting value",
        ),
        (writing("a.jsonl", b"[1]\n"), "line 1: is a list; a row is an object"),
        (writing("a.jsonl", b'{"a": "\xff"}\n'), "a.jsonl can't be read: line 1: 'utf-8' codec"),
        (writing("a.jsonl", b'{"a": NaN}\n'), "line 1: holds NaN"),
        (writing("a.jsonl.gz", b"garbage"), "a.jsonl.gz can't be read: Not a gzipped file"),
        (writing("a.jsonl.gz", CUT_SHORT), "a.jsonl.gz can't be read"),
        (writing("a.db", b"garbage" * 100), "a.db can't be read: file is not a database"),
        (write_tables, "has the tables one, two; a database must have exactly one table"),
        (write_blob, "store BLOBs as base64"),
    ],
)
def test_a_file_that_can_not_be_read_is_named(
    folder: Path, tmp_path: Path, write: Any, says: str
) -> None:
    write(folder)
    with pytest.raises(AggregationError) as refused:
        merge(folder, tmp_path / "out")
    assert says in str(refused.value)
    assert "a." in str(refused.value)
    assert not (tmp_path / "out" / "_manifest.json").exists()


def test_a_path_without_files_to_merge_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no file that ends in \.jsonl"):
        local_sources(folder, tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        local_sources(tmp_path / "nowhere", tmp_path)


def test_rows_that_do_not_fit_the_declared_schema_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "a.jsonl").write_bytes(b'{"a": 1, "b": 2}\n')
    with pytest.raises(AggregationError, match="column 'b'"):
        merge(folder, tmp_path / "out", schema={"a": "int64"})

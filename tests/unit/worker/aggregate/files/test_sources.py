"""S3 names are objects or folders, and a file must not change after its digest was made."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from functools import partial
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

LINE = b'{"a": 1}\n'


def names(sources: Sources) -> list[str]:
    return [source.name for source in sources.found]


def stored(tmp_path: Path, objects: MemoryObjects, *keys: str, **options: Any) -> Sources:
    sources = Sources(tmp_path)
    for key in keys:
        sources.add_stored(objects, "lab", key, **options)
    return sources


def merged(tmp_path: Path, sources: Sources, **options: Any) -> list[dict[str, Any]]:
    out = tmp_path / "out"
    dataset = merge_files(
        sources.found,
        FolderObjects(out),
        "",
        AggregateOptions(**options),
        tmp_path,
        lambda _done, _total: None,
    )
    return [row for file in dataset.files for row in pq.read_table(out / file.key).to_pylist()]


@pytest.fixture
def objects() -> MemoryObjects:
    made = MemoryObjects()
    for key in ("p/res/a.jsonl", "p/res/", "p/res-old/a.jsonl", "p/res.jsonl", "p/res/.x/b.jsonl"):
        made.put(key, LINE)
    made.put("p/res/notes.txt", b"")
    return made


@pytest.mark.parametrize("key", ["p/res", "p/res/"])
def test_a_folder_of_a_bucket_does_not_match_keys_that_only_share_its_prefix(
    tmp_path: Path, objects: MemoryObjects, key: str
) -> None:
    sources = stored(tmp_path, objects, key)
    assert names(sources) == ["s3://lab/p/res/a.jsonl"]
    assert dict(sources.left_out.files) == {"hidden": 1, ".txt": 1}
    assert merged(tmp_path, sources) == [{"a": 1}]


def test_a_named_object_is_only_that_object(tmp_path: Path, objects: MemoryObjects) -> None:
    objects.put("p/res.jsonl.gz", b"")
    assert names(stored(tmp_path, objects, "p/res.jsonl")) == ["s3://lab/p/res.jsonl"]


def test_only_beside_a_database_are_other_files_asked_for(tmp_path: Path) -> None:
    class Counted(MemoryObjects):
        def size(self, key: str) -> int | None:
            asked.append(key)
            return super().size(key)

    asked: list[str] = []
    objects = Counted()
    objects.put("a.jsonl", LINE)
    stored(tmp_path, objects, "a.jsonl")
    assert asked == ["a.jsonl"]


def test_objects_are_read_once(tmp_path: Path, objects: MemoryObjects) -> None:
    sources = stored(tmp_path, objects, "p/res/", "p/res", "p/res/a.jsonl")
    assert names(sources) == ["s3://lab/p/res/a.jsonl"]
    assert sources.left_out.files["named twice"] == 2


def test_the_dataset_in_a_bucket_is_not_an_input(tmp_path: Path, objects: MemoryObjects) -> None:
    objects.put("p/out/c.jsonl", LINE)
    sources = stored(tmp_path, objects, "p", output="p/out/")
    assert "s3://lab/p/out/c.jsonl" not in names(sources)
    assert len(sources.found) == 3


@pytest.mark.parametrize("key", ["p/re", "p/nothing.jsonl", "q/"])
def test_a_folder_that_does_not_exist_is_named(
    tmp_path: Path, objects: MemoryObjects, key: str
) -> None:
    with pytest.raises(UserError, match=f"s3://lab/{key} has no file that ends in"):
        stored(tmp_path, objects, key)


@pytest.mark.parametrize("key", ["runs", "runs/a.db"])
def test_a_database_in_a_bucket_is_read_with_its_write_ahead_log(tmp_path: Path, key: str) -> None:
    objects = MemoryObjects()
    with closing(sqlite3.connect(tmp_path / "a.db")) as db:
        db.execute("PRAGMA journal_mode = wal")
        db.execute("CREATE TABLE t (a)")
        db.execute("INSERT INTO t VALUES (1)")
        db.commit()
        for end in ("", "-wal", "-shm"):
            objects.put(f"runs/a.db{end}", (tmp_path / f"a.db{end}").read_bytes())
    sources = stored(tmp_path, objects, key)
    assert sources.left_out.to_list() == []
    assert merged(tmp_path, sources) == [{"a": 1}]


def test_a_database_in_a_bucket_is_read_with_its_journal(tmp_path: Path) -> None:
    objects = MemoryObjects()
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as db:
        db.execute("PRAGMA cache_size = 1")
        db.execute("CREATE TABLE t (a)")
        db.execute("BEGIN")
        db.executemany("INSERT INTO t VALUES (?)", [(1,)] * 20_000)
        db.execute("COMMIT")
        db.execute("BEGIN")
        db.execute("UPDATE t SET a = 2 WHERE rowid < 15000")
        for end in ("", "-journal"):
            objects.put(f"a.db{end}", (tmp_path / f"a.db{end}").read_bytes())
        db.execute("ROLLBACK")
    assert merged(tmp_path, stored(tmp_path, objects, "a.db")) == [{"a": 1}] * 20_000


@pytest.mark.parametrize("name", ["a.jsonl", "a.db"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "in" / name
    path.parent.mkdir()

    def write(value: int) -> None:
        if name == "a.jsonl":
            path.write_bytes(b'{"a": %d}\n' % value)
            return
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE IF NOT EXISTS t (a)")
            db.execute("INSERT INTO t VALUES (?)", (value,))
            db.commit()

    write(1)
    sources = Sources(tmp_path)
    sources.add_local(path.parent)
    opened = 0

    def change_then_open(source: Source) -> AbstractContextManager[Path]:
        nonlocal opened
        opened += 1
        if opened == 2:  # after its digest was made
            write(2)
        return source.open()

    sources.found = [
        replace(found, open=partial(change_then_open, found)) for found in sources.found
    ]
    with pytest.raises(AggregationError, match=rf"{name} has changed while it was read"):
        merged(tmp_path, sources)
    assert opened == 2


def test_files_of_another_dataset_are_not_removed(tmp_path: Path) -> None:
    """Two merges into one folder: the second to end is refused, and takes nothing away."""
    (tmp_path / "a.jsonl").write_bytes(LINE)
    sources = Sources(tmp_path)
    sources.add_local(tmp_path / "a.jsonl")
    objects = MemoryObjects()

    class Late(MemoryObjects):
        """Where another merge publishes just before this one does."""

        def put_new(self, key: str, body: bytes) -> bool:
            self.objects.update({"part-0123456789abcdef.parquet": b"x", key: b'{"inputs": "x"}'})
            return super().put_new(key, body)

    objects = Late()
    with pytest.raises(UserError, match="holds a dataset of other files or options"):
        merge_files(
            sources.found, objects, "", AggregateOptions(), tmp_path, lambda _done, _total: None
        )
    assert "part-0123456789abcdef.parquet" in objects.objects


def test_leftovers_of_an_interrupted_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINE)
    sources = Sources(tmp_path)
    sources.add_local(tmp_path / "a.jsonl")
    out = tmp_path / "out"
    (out / "p=1").mkdir(parents=True)
    for name in ("part-0123456789abcdef.parquet", "p=1/part-0123456789abcdef.parquet", "x.parquet"):
        (out / name).write_bytes(b"")
    merged(tmp_path, sources)
    left = {path.name for path in out.rglob("*.parquet")}
    assert "x.parquet" in left
    assert "part-0123456789abcdef.parquet" not in left

"""Which files an input has: lists, patterns and datasets; each is read as it was listed."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from airflow_slurm_provider.coordinator.inputs import remote
from airflow_slurm_provider.coordinator.inputs.files import InputFiles
from airflow_slurm_provider.coordinator.inputs.unique_keys import KeyCheck
from slurm_worker.testing import MemoryObjects
from tests.unit.coordinator.inputs.reading import keys, no_bucket, open_, read, refusal


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("b.csv", "a.csv", "a/c.csv", "a-b/d.csv", "a/_e.csv", "a/deep/f.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"id\n{name}\n")
    return tmp_path


@pytest.fixture
def store(data: Path) -> MemoryObjects:
    objects = MemoryObjects()
    for path in data.rglob("*.csv"):
        objects.put(f"in/{path.relative_to(data).as_posix()}", path.read_bytes())
    return objects


def test_a_list_is_read_in_its_order(data: Path) -> None:
    paths = [str(data / "b.csv"), str(data / "a"), str(data / "a.csv")]
    assert keys(path=paths, key="id") == ["b.csv", "a/c.csv", "a/deep/f.csv", "a.csv"]


PATTERNS = [
    ("*.csv", ["a.csv", "b.csv"]),
    ("[b-z].csv", ["b.csv"]),
    ("?/*.csv", ["a/c.csv"]),
    ("a/_*.csv", ["a/_e.csv"]),
    ("**/*.csv", ["a-b/d.csv", "a.csv", "a/c.csv", "a/deep/f.csv", "b.csv"]),
    ("a/**/f.csv", ["a/deep/f.csv"]),
]


@pytest.mark.parametrize(("pattern", "found"), PATTERNS)
def test_a_pattern_finds_local_files(data: Path, pattern: str, found: list[str]) -> None:
    assert keys(path=str(data / pattern), key="id") == found


@pytest.mark.parametrize(("pattern", "found"), PATTERNS)
def test_a_pattern_finds_the_same_objects_on_s3(
    store: MemoryObjects, pattern: str, found: list[str]
) -> None:
    assert keys(lambda _: store, path=f"s3://lab/in/{pattern}", key="id") == found


def test_folders_are_read_in_the_same_order_here_and_on_s3(
    data: Path, store: MemoryObjects
) -> None:
    here = keys(path=str(data), key="id")
    assert here == ["a-b/d.csv", "a.csv", "a/c.csv", "a/deep/f.csv", "b.csv"]
    assert here == keys(lambda _: store, path="s3://lab/in", key="id")


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].csv").write_text("id\nx\n")
    assert keys(path=str(tmp_path / "a[1].csv"), key="id") == ["x"]


@pytest.mark.parametrize("path", ["{}/z*.csv", "s3://lab/in/z*.csv"])
def test_a_pattern_that_matches_nothing_is_refused(
    data: Path, store: MemoryObjects, path: str
) -> None:
    named = path.format(data)
    message = refusal(lambda: open_(lambda _: store, path=named, key="id"))
    assert message.startswith(f"input.path: no file matches {named}; correct the pattern")


def test_a_file_that_is_named_twice_is_refused(data: Path) -> None:
    paths = [str(data / "*.csv"), str(data / "a.csv")]
    assert "a.csv is named twice" in refusal(lambda: open_(path=paths, key="id"))


def test_files_whose_columns_differ_are_refused_by_both_names(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,x\n1,2\n")
    (tmp_path / "b.csv").write_text("id,y\n3,4\n")
    message = refusal(lambda: read(path=str(tmp_path), key="id"))
    assert f"{tmp_path}/b.csv lacks the column 'x', which {tmp_path}/a.csv has" in message
    assert read(path=str(tmp_path), key="id", columns=["id"]) == [
        ("1", {"id": "1"}),
        ("3", {"id": "3"}),
    ]


def test_a_key_that_repeats_across_files_names_both_files_and_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id\n1\n2\n")
    (tmp_path / "b.csv").write_text("id\n3\n4\n2\n")
    found = open_(path=str(tmp_path), key="id")
    with KeyCheck() as check:
        list(check.watch(found.items()))
        message = refusal(lambda: check.check(found.places))
    assert message.startswith(
        f"input.key: '2' is the key of {tmp_path}/a.csv: row 2 and of {tmp_path}/b.csv: row 3; "
    )


def test_a_file_that_changes_after_it_was_listed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id\n1\n")
    found = open_(path=str(path), key="id")
    path.write_text("id\n2\n")
    os.utime(path, ns=(1, 1))
    message = refusal(lambda: list(found.items()))
    assert message.startswith(f"input.path: {path} changed while the input was read")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id\n1\n2\n")
    items = open_(path=str(path), key="id").items()
    next(items)
    with path.open("a") as file:
        file.write("3\n")
    assert "changed while the input was read" in refusal(lambda: list(items))


def test_an_object_that_is_written_again_or_deleted_is_refused(store: MemoryObjects) -> None:
    found = open_(lambda _: store, path="s3://lab/in", key="id")
    store.put("in/b.csv", b"id\nB.csv\n")
    message = refusal(lambda: list(found.items()))
    assert message.startswith("input.path: s3://lab/in/b.csv changed while the input was read")
    store.delete("in/b.csv")
    message = refusal(lambda: list(found.items()))
    assert message.startswith("input.path: s3://lab/in/b.csv was deleted while the input was read")


def write_dataset(folder: Path) -> dict[str, bytes]:
    """A job's dataset with a file that a later version has replaced."""
    version = "000002-0123456789abcdef-x"
    kept = {f"year={year}/part.csv": f"id\nk{year}\n".encode() for year in (2021, 2020)}
    prefix = f"lab/jobs/j/dataset/{version}/"
    files = [
        {"key": prefix + name, "size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        for name, body in kept.items()
    ]
    manifest = json.dumps({"folder": prefix, "files": files}).encode()
    found = {f"{version}/{name}": body for name, body in kept.items()}
    found = {**found, "000001-0-y/part.csv": b"id\nold\n", "_manifest.json": manifest}
    for name, body in found.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    return found


@pytest.mark.parametrize("path", ["", "/", "/_manifest.json"])
def test_a_dataset_is_read_by_its_manifest(tmp_path: Path, path: str) -> None:
    objects = MemoryObjects()
    for name, body in write_dataset(tmp_path).items():
        objects.put(f"lab/jobs/j/dataset/{name}", body)
    wanted = [("k2021", {"id": "k2021", "year": 2021}), ("k2020", {"id": "k2020", "year": 2020})]
    assert read(path=f"{tmp_path}{path}", key="id") == wanted
    address = f"s3://bucket/lab/jobs/j/dataset{path}"
    assert read(lambda _: objects, path=address, key="id") == wanted


def test_a_file_that_is_not_the_one_of_the_manifest_is_refused(tmp_path: Path) -> None:
    names = write_dataset(tmp_path)
    path = next(tmp_path / name for name in names if "2020" in name)
    path.write_text("id\nK2020\n")
    message = refusal(lambda: read(path=str(tmp_path), key="id"))
    assert f"{path} changed while the input was read" in message
    path.write_text("id\n")
    assert "it has 3 bytes, not 9" in refusal(lambda: open_(path=str(tmp_path), key="id"))
    path.unlink()
    assert "which does not exist" in refusal(lambda: open_(path=str(tmp_path), key="id"))


def test_what_is_not_a_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "_manifest.json").write_text('{"a": 1}')
    message = refusal(lambda: open_(path=str(tmp_path), key="id"))
    assert "_manifest.json is not the manifest of a dataset" in message


def test_the_list_says_what_shows_that_a_file_was_written_again(store: MemoryObjects) -> None:
    lines = [json.loads(each) for each in InputFiles(("s3://lab/in",), lambda _: store).described()]
    tags = {entry.key: entry.tag for entry in store.entries("in/")}
    assert [each["name"] for each in lines][:2] == ["s3://lab/in/a-b/d.csv", "s3://lab/in/a.csv"]
    assert lines[0]["tag"] == tags["in/a-b/d.csv"] != ""
    assert lines[0]["size"] == len("id\na-b/d.csv\n")


def test_ten_thousand_tiny_files_are_one_input(tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"{number:05}.jsonl").write_text(f'{{"id":{number}}}\n')
    assert keys(path=str(tmp_path), key="id") == [str(number) for number in range(10_000)]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("xyz://a/b.csv", "addresses with xyz:// are not supported"),
        ("file:///tmp/b.csv", "addresses with file:// are not supported"),
        ("gs://a/b.csv", "addresses with gs:// need a package that is not here"),
    ],
)
def test_an_address_that_nothing_reads_is_refused_by_its_scheme(path: str, says: str) -> None:
    assert says in refusal(lambda: open_(no_bucket, path=path, key="id"))


# --- other stores ------------------------------------------------------------------


class Gcs(MemoryFileSystem):
    """Google's store as gcsfs shows it: addresses without a slash at the front, and ETags."""

    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def info(self, path: str, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = super().info(path, **more)
        body = self.store.get(found["name"])
        return found if body is None else {**found, "etag": str(hash(body.getvalue()))}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(str(path).removeprefix("gs://")))


@pytest.fixture
def gcs(data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gcs]:
    files = Gcs()
    monkeypatch.setattr(fsspec, "filesystem", lambda _scheme: files)
    remote.file_system.cache_clear()
    for path in data.rglob("*.csv"):
        files.pipe_file(f"gs://lab/in/{path.relative_to(data).as_posix()}", path.read_bytes())
    yield files
    Gcs.store.clear()
    remote.file_system.cache_clear()


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a.csv", ["a.csv"]),
        ("", ["a-b/d.csv", "a.csv", "a/c.csv", "a/deep/f.csv", "b.csv"]),
        ("*/?.csv", ["a-b/d.csv", "a/c.csv"]),
    ],
)
@pytest.mark.usefixtures("gcs")
def test_files_of_another_store_are_found_as_those_on_s3(path: str, found: list[str]) -> None:
    assert keys(path=f"gs://lab/in/{path}", key="id") == found


def test_a_file_of_another_store_that_changes_is_refused(gcs: Gcs) -> None:
    found = open_(path="gs://lab/in/a.csv", key="id")
    gcs.pipe_file("gs://lab/in/a.csv", b"id\nA.csv\n")
    assert "gs://lab/in/a.csv changed while" in refusal(lambda: list(found.items()))
    assert "does not exist" in refusal(lambda: open_(path="gs://lab/in/z.csv", key="id"))


def test_a_file_of_a_web_server_is_read(data: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(data))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            assert keys(path=f"{address}/a.csv", key="id") == ["a.csv"]
            message = refusal(lambda: open_(path=f"{address}/z.csv", key="id"))
        finally:
            server.shutdown()
    assert message.startswith(f"input.path: {address}/z.csv does not exist")

"""`slurmctl fetch`, `head` and `query`: the dataset, whole and of one version."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from airflow_slurm_provider.cli.app import ExitCode
from airflow_slurm_provider.coordinator.published.manifest import names_of
from slurm_worker.aggregate.dataset.folder import DataFile
from slurm_worker.aggregate.job.publish import Manifest
from slurm_worker.errors import Missing, UserError
from tests.unit.cli.conftest import ITEMS, Cli, Handler, write_config


@pytest.fixture
def flat(cli: Cli) -> Cli:
    cli.submit()
    cli.work()
    assert cli("aggregate", "job-1").code == ExitCode.OK
    return cli


def rows_in(folder: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in folder.rglob("*.parquet"))


def test_fetch_makes_a_verified_copy_and_downloads_nothing_twice(flat: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    first = flat("fetch", "job-1", folder, "--json").json
    assert (first["files"], first["downloaded"]) == (1, 1)
    assert rows_in(folder) == ITEMS - 2
    assert json.loads((folder / "_manifest.json").read_text())["rows"] == ITEMS - 2
    assert flat("fetch", "job-1", folder, "--json").json == {**first, "downloaded": 0}


def test_fetch_downloads_again_what_was_damaged_or_cut_off(flat: Cli, tmp_path: Path) -> None:
    flat("fetch", "job-1", tmp_path / "d")
    (file,) = (tmp_path / "d").glob("*.parquet")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"?")
    (tmp_path / "d" / f"{file.name}.part").write_bytes(b"cut off")
    assert flat("fetch", "job-1", tmp_path / "d", "--json").json["downloaded"] == 1
    assert file.read_bytes() == whole


def test_fetch_replaces_an_older_version_and_leaves_other_files(
    flat: Cli, tmp_path: Path, handler: Handler
) -> None:
    folder = tmp_path / "d"
    before = flat("fetch", "job-1", folder, "--json").json
    (folder / "notes.txt").write_text("mine")
    handler.cured = True
    flat("retry", "job-1")
    flat.work()
    flat("aggregate", "job-1")
    after = flat("fetch", "job-1", folder, "--json").json
    assert after["version"] != before["version"]
    assert rows_in(folder) == ITEMS - 1
    assert (folder / "notes.txt").read_text() == "mine"


def test_fetch_takes_the_version_that_replaces_the_one_it_reads(
    flat: Cli, tmp_path: Path, handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = flat.world.objects
    download = objects.download

    def deleted(key: str, path: str) -> None:
        monkeypatch.setattr(objects, "download", download)
        handler.cured = True
        flat("retry", "job-1")
        flat.work()
        flat("aggregate", "job-1")
        raise Missing(f"{key}: there is no such object")

    monkeypatch.setattr(objects, "download", deleted)
    assert flat("fetch", "job-1", tmp_path / "d").code == ExitCode.OK
    assert rows_in(tmp_path / "d") == ITEMS - 1


def test_fetch_refuses_what_is_not_as_the_manifest_says(flat: Cli, tmp_path: Path) -> None:
    objects = flat.world.objects.objects
    (key,) = (key for key in objects if key.endswith(".parquet") and "/dataset/" in key)
    objects[key] = objects[key][:-1] + b"?"
    ended = flat("fetch", "job-1", tmp_path / "d")
    assert ended.code == ExitCode.SERVICE_ERROR
    assert f"{key} is not as the manifest says" in ended.err
    assert list((tmp_path / "d").glob("*.parquet*")) == []


def test_fetch_names_a_file_that_somebody_has_deleted(flat: Cli, tmp_path: Path) -> None:
    objects = flat.world.objects.objects
    (key,) = (key for key in objects if key.endswith(".parquet") and "/dataset/" in key)
    del objects[key]
    ended = flat("fetch", "job-1", tmp_path / "d")
    assert ended.code == ExitCode.SERVICE_ERROR
    assert key in ended.err
    assert "find out what deletes" in ended.err


def test_fetch_refuses_a_folder_that_is_not_its_own(flat: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    ended = flat("fetch", "job-1", tmp_path / "mine")
    assert ended.code == ExitCode.USER_ERROR
    assert "holds other files, such as 'thesis.tex'; choose an empty folder" in ended.err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".slurmctl-fetch.json").write_text('{"job_id": "job-2", "names": []}')
    assert "holds the dataset of 'job-2'" in flat("fetch", "job-1", tmp_path / "other").err
    (tmp_path / "file").touch()
    ended = flat("fetch", "job-1", tmp_path / "file" / "d")
    assert ended.code == ExitCode.USER_ERROR
    assert "can't be written: Not a directory" in ended.err


@pytest.mark.parametrize("words", [("fetch", "job-1", "FOLDER"), ("head", "job-1")])
def test_a_job_without_a_dataset_is_told_what_to_run(
    cli: Cli, tmp_path: Path, words: tuple[str, ...]
) -> None:
    cli.submit()
    ended = cli(*(word.replace("FOLDER", str(tmp_path / "d")) for word in words))
    assert ended.code == ExitCode.USER_ERROR
    assert "'job-1' has no dataset yet; run slurmctl aggregate job-1 first" in ended.err


@pytest.mark.parametrize("name", ["../../outside", "/outside", "a/../../b", "x\x1b[31m"])
def test_a_manifest_that_leads_out_of_the_folder_is_refused(name: str) -> None:
    file = DataFile(f"lab/dataset/v/{name}", 1, 1, "")
    manifest = Manifest("job-1", 1, 1, 1, {}, "lab/dataset/v/", (file,), (), {}, "", "")
    with pytest.raises(UserError, match="is not the name of a file"):
        names_of(manifest)


def test_head_shows_the_first_rows_in_their_order(flat: Cli) -> None:
    lines = flat("head", "job-1", "-n", "2").out.splitlines()
    assert lines == ["_key  double", "k0    0", "k3    6"]
    found = flat("head", "job-1", "-n", "2", "--json").json
    assert found["rows"] == [["k0", 0], ["k3", 6]]
    assert found["more"]


def test_head_reads_one_file_of_many(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(cli.config.parent, aggregate={"partition_by": ["n"]})
    cli.world.handle = lambda item, _context: {"n": item["n"], "text": "x"}
    cli.submit()
    cli.work()
    assert cli("aggregate", "job-1").code == ExitCode.OK
    objects, read = cli.world.objects, set()
    get = objects.get

    def noted(key: str, *, start: int = 0, length: int | None = None) -> bytes | None:
        read.update([key] if key.endswith(".parquet") else [])
        return get(key, start=start, length=length)

    monkeypatch.setattr(objects, "get", noted)
    assert len(cli("head", "job-1", "-n", "1", "--json").json["rows"]) == 1
    assert len(read) < 5


def test_query_reads_rows_and_failures_and_nothing_else(flat: Cli, tmp_path: Path) -> None:
    sql = "SELECT count(*), max(double) FROM dataset WHERE double > 4"
    found = flat("query", "job-1", sql, "--json").json
    assert found["rows"] == [[ITEMS - 3, 2 * (ITEMS - 1)]]
    by_class = flat("query", "job-1", 'SELECT "class", count(*) FROM errors GROUP BY 1 ORDER BY 1')
    assert by_class.out.splitlines()[1:] == ["bad_input  1", "network    1"]
    (tmp_path / "secret.csv").write_text("a\n1\n")
    for sql in (
        f"SELECT * FROM '{tmp_path}/secret.csv'",
        f"COPY dataset TO '{tmp_path}/out.csv'",
        "INSTALL httpfs",
        "SELECT 1; SELECT 2",
        "SELECT nothing FROM dataset",
        "SELEKT",
    ):
        ended = flat("query", "job-1", sql)
        assert ended.code == ExitCode.USER_ERROR, sql
        assert ended.err.startswith("slurmctl: SQL: ")
        assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "out.csv").exists()


def test_a_long_result_says_that_there_are_more_rows(flat: Cli) -> None:
    out = flat("query", "job-1", "SELECT * FROM dataset", "--limit", "3").out
    assert out.splitlines()[-1] == "(the first 3 rows; for more, use --limit)"


@pytest.mark.parametrize("words", [("head", "job-1"), ("query", "job-1", "SELECT * FROM dataset")])
def test_a_file_that_is_deleted_during_a_query_is_named(flat: Cli, words: tuple[str, ...]) -> None:
    objects = flat.world.objects.objects
    (key,) = (key for key in objects if key.endswith(".parquet") and "/dataset/" in key)
    del objects[key]
    ended = flat(*words)
    assert ended.code == ExitCode.SERVICE_ERROR
    assert key in ended.err


def test_partitions_are_columns_of_a_query_and_folders_of_a_copy(cli: Cli, tmp_path: Path) -> None:
    write_config(cli.config.parent, aggregate={"partition_by": ["third"]})
    cli.world.handle = lambda item, _context: {"n": item["n"], "third": item["n"] % 3}
    cli.submit()
    cli.work()
    assert cli("aggregate", "job-1").code == ExitCode.OK
    found = cli("query", "job-1", "SELECT third, count(*) FROM dataset GROUP BY 1 ORDER BY 1")
    assert found.out.splitlines()[1:] == ["0      9", "1      8", "2      8"]
    assert cli("fetch", "job-1", tmp_path / "d", "--json").json["files"] == 3
    assert rows_in(tmp_path / "d" / "third=0") == 9

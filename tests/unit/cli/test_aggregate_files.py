"""`slurmctl aggregate-files`: every row of the files gets into the dataset, or is refused."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_slurm_provider.cli.app import run

Row = dict[str, Any]


class Merged:
    """A folder of inputs and the dataset that is made of it."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "in"
        self.folder.mkdir()
        self.output = root / "out"

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def run(self, *options: str, paths: tuple[str | Path, ...] = ()) -> int:
        where = [str(path) for path in paths or (self.folder,)]
        return run(["aggregate-files", *where, "-o", str(self.output), *options])

    def files(self) -> list[Path]:
        return sorted(self.output.rglob("*.parquet"))

    def rows(self) -> list[Row]:
        """By pyarrow, file by file."""
        return [row for file in self.files() for row in pq.ParquetFile(file).read().to_pylist()]


@pytest.fixture
def merged(tmp_path: Path) -> Merged:
    return Merged(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """One line on stderr, which has these words."""
    line = capsys.readouterr().err
    assert line.startswith("slurmctl: ")
    assert line.count("\n") == 1
    for word in words:
        assert word in line


# --- JSON ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"x": 1, "x": 2}', "names 'x' twice"),
        ('{"x": {"y": 1, "\\u0079": 2}}', "names 'y' twice"),
        ('{"x": [{"y": null, "y": null}]}', "names 'y' twice"),
        ("[1]", "is a list"),
        ("1", "is a number"),
        ('"x"', "is a string"),
        ("false", "is true or false"),
        ('{"x": 1}{"x": 2}', "Extra data"),
        ('{"x": 1\n"y": 2}', "is not JSON"),
        ('{"x": [1\n,2]}', "is not JSON"),
        ('{"x": [{"y": 1}\n{"y": 2}]}', "is not JSON"),
        ('{"x": 1', "is not JSON"),
        ('{"\\ud800": 1}', "half of a surrogate pair"),
        ('{"x": "\\udfff"}', "half of a surrogate pair"),
        ('{"x": 1e400}', "a double does not keep"),
        ('{"x": -1e-400}', "a double does not keep"),
        ('{"x": 1.234567e-320}', "a double does not keep"),
        ('{"x": 0.1234567890123456789}', "a double does not keep"),
        ('{"x": 9007199254740993.0}', "a double does not keep"),
        ('{"x": [0.5, 0.12345678901234567]}', "a double does not keep"),
        ('{"x": {"y": 0.12345678901234567}}', "a double does not keep"),
        ('{"x": Infinity}', "holds Infinity"),
        pytest.param(
            '{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply", id="nested"
        ),
    ],
)
@pytest.mark.parametrize("before", [0, 5_000])
def test_a_line_that_can_not_be_stored_exactly_is_refused_with_its_number(
    merged: Merged, capsys: pytest.CaptureFixture[str], line: str, says: str, before: int
) -> None:
    # Many good lines first, so that those after them are read the fast way.
    value = json.loads(line)["x"] if says == "a double does not keep" else 1.5
    same = [0.25] if isinstance(value, list) else {"y": 0.25} if isinstance(value, dict) else 0.25
    merged.write("a.jsonl", f"{json.dumps({'x': same})}\n" * before + line + "\n")
    assert merged.run() == 2
    refused(capsys, "a.jsonl", f"line {before + 1:,}: ", says)
    assert merged.files() == []


@pytest.mark.parametrize("line", ["null", '{"x": 1}null{"x": 2}', '{"x": 1} null', "\x00"])
def test_a_line_that_arrow_would_crash_on_is_refused_with_its_number(
    merged: Merged, line: str
) -> None:
    merged.write("a.jsonl", '{"x": 1}\n')
    merged.write("b.jsonl", line + "\n")
    # In a process of its own, which Arrow could bring down.
    code = "import sys; from airflow_slurm_provider.cli import main; main()"
    command = [sys.executable, "-c", code, "aggregate-files"]
    ended = subprocess.run(
        [*command, str(merged.folder), "-o", str(merged.output)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "b.jsonl can't be read: line 1: " in ended.stderr


@pytest.mark.parametrize(
    "text",
    [
        b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n',
        b'{"a": 1}\n\n \n{"a": 2}\n\n',
        b'{"a": 1}\r\n\r\n{"a": 2}\r\n',
        b' {"a": 1} \n\t{"a": 2}',
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".NDJSON", ".jsonl.gz"])
def test_byte_order_marks_and_blank_lines_are_not_rows(
    merged: Merged, text: bytes, suffix: str
) -> None:
    merged.write(f"a{suffix}", gzip.compress(text) if suffix.endswith("gz") else text)
    assert merged.run() == 0
    assert merged.rows() == [{"a": 1}, {"a": 2}]


ONE = gzip.compress(b'{"a": 1}\n', mtime=0)


@pytest.mark.parametrize(
    "data",
    [b"", ONE[:-3], ONE + b"more", ONE + ONE[:-9]],
    ids=["empty", "truncated", "with more", "second truncated"],
)
def test_a_gzip_file_that_is_truncated_or_has_bytes_after_its_end_is_refused(
    merged: Merged, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    merged.write("a.jsonl.gz", data)
    assert merged.run() == 2
    refused(capsys, "a.jsonl.gz can't be read")


def test_a_number_that_a_double_holds_is_read_in_any_notation(merged: Merged) -> None:
    numbers = ["0.10000000000000001", "5e-324", "1e22", "-0.0", "0.10000000000000000555", "1E+2"]
    merged.write("a.jsonl", "".join(f'{{"x": {number}}}\n' for number in numbers))
    assert merged.run() == 0
    assert [row["x"] for row in merged.rows()] == [float(number) for number in numbers]


def test_values_nested_more_than_30_levels_deep_are_refused(
    merged: Merged, capsys: pytest.CaptureFixture[str]
) -> None:
    merged.write("a.jsonl", '{"a": ' + "[" * 60 + "1" + "]" * 60 + "}\n")
    assert merged.run() == 2
    refused(capsys, "nested more than 30 levels deep", "a.jsonl")


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.sampled_from(
    ["", "a", "A", "a.b", "filename", "file_row_number", "_key", 'q"', "'", "\n", "a=b", "c0", "\0"]
)
VALUES = st.recursive(
    st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    | st.booleans(),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=1)
        | st.dictionaries(NAMES, inner, min_size=1, max_size=3)
    ),
    max_leaves=4,
)


@settings(deadline=None, max_examples=40)
@given(
    row=st.dictionaries(NAMES, VALUES, min_size=1, max_size=4),
    copies=st.integers(1, 3),
    ascii_only=st.booleans(),
)
def test_rows_come_back_unchanged_with_any_column_names(
    row: Row, copies: int, ascii_only: bool
) -> None:
    with tempfile.TemporaryDirectory() as root:
        merged = Merged(Path(root))
        line = json.dumps(row, ensure_ascii=ascii_only) + "\n"
        merged.write("a.jsonl", line * copies)
        name = next(iter(row))
        assert merged.run() == 0
        assert merged.rows() == [row] * copies
        if '""' not in line:  # DuckDB gives an empty name one that another column may have
            read = duckdb.sql(f"SELECT * FROM read_parquet('{merged.files()[0]}')").fetchall()
            assert len(read) == copies
        if name.strip() == name and name and "," not in name:
            merged.output = Path(root) / "sorted"
            assert merged.run("--sort-by", name) == 0
            assert merged.rows() == [row] * copies


# --- SQLite ----------------------------------------------------------------------------


def made(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


@pytest.fixture
def interrupted(merged: Merged) -> Iterator[sqlite3.Connection]:
    """A database whose writer has changed its pages, and committed none of that."""
    with closing(sqlite3.connect(merged.folder / "a.db", isolation_level=None)) as db:
        db.execute("PRAGMA cache_size = 1")
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, amount INTEGER)")
        db.execute("BEGIN")
        db.executemany("INSERT INTO t (amount) VALUES (?)", [(100,)] * 20_000)
        db.execute("COMMIT")
        db.execute("BEGIN")
        db.execute("UPDATE t SET amount = -1 WHERE id < 15000")
        yield db
        db.execute("ROLLBACK")


@pytest.mark.usefixtures("interrupted")
def test_uncommitted_rows_of_a_database_are_not_published(merged: Merged) -> None:
    before = {file.name: file.read_bytes() for file in merged.folder.iterdir()}
    assert merged.run() == 0
    assert "a.db-journal" in before
    assert [row["amount"] for row in merged.rows()] == [100] * 20_000
    assert {file.name: file.read_bytes() for file in merged.folder.iterdir()} == before


def test_rows_committed_only_to_the_write_ahead_log_are_published(merged: Merged) -> None:
    with closing(sqlite3.connect(merged.folder / "a.db")) as db:
        db.execute("PRAGMA journal_mode = wal")
        db.execute("CREATE TABLE t (a)")
        db.execute("INSERT INTO t VALUES (1)")
        db.commit()
        db.execute("INSERT INTO t VALUES (2)")
        before = sorted(file.name for file in merged.folder.iterdir())
        assert merged.run() == 0
        assert sorted(file.name for file in merged.folder.iterdir()) == before
    assert "a.db-wal" in before
    assert merged.rows() == [{"a": 1}]


def test_a_schema_that_names_a_column_twice_is_refused(
    merged: Merged, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged.write("a.jsonl", '{"x": 1}\n')
    schema = tmp_path / "schema.yaml"
    schema.write_text("x: int64\nx: double\n")
    assert merged.run("--schema", str(schema)) == 2
    refused(capsys, "schema.yaml: ", "line 2, column 1: the key 'x' occurs twice")


def test_an_empty_output_is_refused(merged: Merged, capsys: pytest.CaptureFixture[str]) -> None:
    merged.write("a.jsonl", "{}\n")
    code = run(["aggregate-files", str(merged.folder), "-o", ""])  # as an empty variable gives it
    assert code == 2
    refused(capsys, "-o: is empty; give a folder")


def test_control_characters_in_a_suffix_are_escaped(
    merged: Merged, capsys: pytest.CaptureFixture[str]
) -> None:
    merged.write("a.jsonl", '{"a": 1}\n')
    merged.write("b.txt\n\x1b[31m", "")
    assert merged.run() == 0
    assert r"1 .txt\n\x1b[31m (b.txt\n\x1b[31m)" in capsys.readouterr().out


def test_a_file_of_empty_objects_is_refused(
    merged: Merged, capsys: pytest.CaptureFixture[str]
) -> None:
    merged.write("a.jsonl", "{}\n{}\n")
    assert merged.run() == 2
    refused(capsys, "a.jsonl has only empty objects")


def test_a_journal_of_several_databases_is_refused(
    merged: Merged, capsys: pytest.CaptureFixture[str]
) -> None:
    made(merged.folder / "a.db", "CREATE TABLE t (a)")
    merged.write("a.db-journal", b"x" * 600 + bytes.fromhex("d9d505f920a163d7"))
    assert merged.run() == 2
    refused(capsys, "a.db has a journal of a transaction over several databases")


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE t (a INTEGER PRIMARY KEY AUTOINCREMENT)", "INSERT INTO t VALUES (1)"],
        ["CREATE TABLE t (a)", "CREATE INDEX i ON t (a)", "INSERT INTO t VALUES (1)", "ANALYZE"],
        ["CREATE TABLE t (a PRIMARY KEY) WITHOUT ROWID", "INSERT INTO t VALUES (1)"],
        ["CREATE TABLE t (a)", "INSERT INTO t VALUES (1)", "CREATE VIEW v AS SELECT 2 AS b"],
        [
            "CREATE TABLE t (a)",
            "INSERT INTO t VALUES (1)",
            "CREATE VIRTUAL TABLE f USING fts5(x)",
            "INSERT INTO f VALUES ('y')",
        ],
    ],
)
def test_views_and_internal_tables_of_a_database_are_ignored(
    merged: Merged, statements: list[str]
) -> None:
    made(merged.folder / "a.db", *statements)
    assert merged.run() == 0
    assert merged.rows() == [{"a": 1}]


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        (["CREATE TABLE one (a)", "CREATE TABLE two (a)"], "the tables one, two; a database"),
        (["CREATE VIEW v AS SELECT 1 AS a"], "(none) (and v, which can't be read)"),
        (["CREATE VIRTUAL TABLE f USING fts5(x)"], "(none) (and f, which can't be read)"),
        (["CREATE TABLE t (a)", "INSERT INTO t VALUES (9e999)"], "that JSON can't hold"),
        (["CREATE TABLE t (a)", "INSERT INTO t VALUES (CAST(x'ff' AS TEXT))"], "UTF-8"),
    ],
)
def test_a_database_without_one_readable_table_is_refused(
    merged: Merged, capsys: pytest.CaptureFixture[str], statements: list[str], says: str
) -> None:
    made(merged.folder / "a.db", *statements)
    assert merged.run() == 2
    refused(capsys, "a.db", says)


def test_a_users_table_with_the_column_names_of_a_part_is_read_as_columns(merged: Merged) -> None:
    row = {"number": 2, "key": "k", "line": "text"}
    made(
        merged.folder / "a.db",
        "CREATE TABLE t (number, key, line)",
        "INSERT INTO t VALUES (2, 'k', 'text')",
    )
    assert merged.run() == 0
    assert merged.rows() == [row]


def test_rows_of_a_database_come_in_order_of_their_ids(merged: Merged) -> None:
    made(
        merged.folder / "a.db",
        "CREATE TABLE t (a)",
        "CREATE INDEX i ON t (a)",
        "INSERT INTO t VALUES (3), (1), (2)",
    )
    assert merged.run() == 0
    assert merged.rows() == [{"a": 3}, {"a": 1}, {"a": 2}]


# --- which files -----------------------------------------------------------------------


def test_a_file_that_is_named_in_several_ways_is_read_once(
    merged: Merged, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = merged.write("a.jsonl", '{"a": 1}\n')
    (merged.folder / "link.jsonl").symlink_to(path)
    os.link(path, merged.folder / "other.jsonl")
    (merged.folder / "up").symlink_to(merged.folder.parent)
    monkeypatch.chdir(merged.folder)
    assert merged.run(paths=("a.jsonl", "./a.jsonl", path, "link.jsonl", "other.jsonl", ".")) == 0
    assert merged.rows() == [{"a": 1}]
    assert "named twice" in capsys.readouterr().out


def test_files_that_are_left_out_are_reported(
    merged: Merged, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (".ipynb_checkpoints/a.jsonl", "_temporary/a.jsonl", "._a.jsonl", "a.jsonl"):
        merged.write(name, '{"a": 1}\n')
    for name in ("c.json", "d.jsonl.bz2", "README", "e.csv", "f.csv"):
        merged.write(name, "")
    assert merged.run("--json") == 0
    told = json.loads(capsys.readouterr().out)["left_out"]
    assert {group["why"]: group["files"] for group in told} == {
        "hidden": 3,
        ".json": 1,
        ".bz2": 1,
        "without a suffix": 1,
        ".csv": 2,
    }
    assert next(group["examples"] for group in told if group["why"] == ".csv") == ["e.csv", "f.csv"]
    assert merged.rows() == [{"a": 1}]


def test_a_hidden_file_is_read_if_the_user_names_it(merged: Merged) -> None:
    path = merged.write(".x/_a.jsonl", '{"a": 1}\n')
    assert merged.run(paths=(path,)) == 0
    assert merged.rows() == [{"a": 1}]


def test_linked_folders_are_searched(merged: Merged, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "b.jsonl").write_text('{"a": 1}\n')
    (merged.folder / "link").symlink_to(tmp_path / "else")
    assert merged.run() == 0
    assert merged.rows() == [{"a": 1}]


def test_the_folder_of_the_dataset_is_not_an_input(
    merged: Merged, capsys: pytest.CaptureFixture[str]
) -> None:
    merged.write("a.jsonl", '{"a": 1}\n')
    merged.output = merged.folder / "out"
    merged.write("out/b.jsonl", '{"a": 2}\n')
    assert merged.run() == 0
    assert merged.run() == 0
    assert merged.rows() == [{"a": 1}]
    assert "left out" not in capsys.readouterr().out


def test_files_that_can_not_be_read_are_named(
    merged: Merged, capsys: pytest.CaptureFixture[str]
) -> None:
    merged.write("a.jsonl", '{"a": 1}\n')
    os.mkfifo(merged.folder / "b.jsonl")
    assert merged.run() == 2
    refused(capsys, "b.jsonl is not a regular file")
    (merged.folder / "b.jsonl").unlink()
    (merged.folder / "c.jsonl").symlink_to("nowhere")
    assert merged.run() == 2
    refused(capsys, "c.jsonl can't be read: No such file")
    assert merged.run(paths=("",)) == 2
    refused(capsys, "PATH: is empty")
    assert merged.run(paths=(merged.write("notes.txt", ""),)) == 2
    refused(capsys, "notes.txt has no file that ends in .jsonl")


def test_a_file_name_that_is_not_utf8_is_shown_with_escapes(
    merged: Merged, capsys: pytest.CaptureFixture[str]
) -> None:
    (merged.folder / os.fsdecode(b"a\xff\n\x1b.jsonl")).write_text("x\n")
    assert merged.run() == 2
    refused(capsys, "a\\udcff\\n\\x1b.jsonl can't be read")


# --- what the dataset is made of -------------------------------------------------------


def test_rows_are_written_again_after_their_declared_type_has_changed(
    merged: Merged, tmp_path: Path
) -> None:
    merged.write("a.jsonl", '{"x": "abc"}\n{"x": "1"}\n')
    schema = tmp_path / "schema.yaml"
    schema.write_text("x: json")
    assert merged.run("--schema", str(schema)) == 0
    assert [row["x"] for row in merged.rows()] == ['"abc"', '"1"']
    (merged.output / "_manifest.json").unlink()
    schema.write_text("x: string")
    assert merged.run("--schema", str(schema)) == 0
    assert [row["x"] for row in merged.rows()] == ["abc", "1"]


def test_a_column_named_key_in_the_files_is_an_ordinary_column(
    merged: Merged, tmp_path: Path
) -> None:
    merged.write("a.jsonl", '{"_key": "b", "x": 1}\n{"_key": "a", "x": 2}\n')
    schema = tmp_path / "schema.yaml"
    schema.write_text("_key: string\nx: int64")
    assert merged.run("--sort-by", "_key", "--schema", str(schema)) == 0
    assert merged.rows() == [{"_key": "a", "x": 2}, {"_key": "b", "x": 1}]


def test_files_without_a_column_named_key_can_not_be_sorted_by_it(
    merged: Merged, capsys: pytest.CaptureFixture[str]
) -> None:
    merged.write("a.jsonl", '{"x": 1}\n')
    assert merged.run("--sort-by", "_key") == 2
    refused(capsys, "aggregate.sort_by: there is no column '_key'")


# --- sorted and partitioned ------------------------------------------------------------


@pytest.mark.parametrize("name", ["a=b", "[a]", "a*", "a?", "{a,b}", "a'b", 'a"b', "a\\[b", "a\nb"])
def test_rows_are_sorted_with_any_characters_in_the_scratch_path(
    merged: Merged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    scratch = tmp_path / name
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    rows = [{"o": {"a": n, "A": -n}, "filename": "f", "n": n} for n in (2, 1)]
    merged.write("a.jsonl", "".join(json.dumps(line) + "\n" for line in rows))
    assert merged.run("--sort-by", "n") == 0
    assert merged.rows() == rows[::-1]


PARTITIONS = [
    "", "a", "A", "a/b", "c=d", "50%", "x\ny", ".", "..", "\0", "é", "a b", "a+b", "007", "~", None
]  # fmt: skip


def test_partition_values_are_read_back_unchanged_by_every_reader(merged: Merged) -> None:
    merged.write(
        "a.jsonl",
        "".join(json.dumps({"p": value, "n": n}) + "\n" for n, value in enumerate(PARTITIONS)),
    )
    assert merged.run("--partition-by", "p") == 0
    every = f"{merged.output}/**/*.parquet"
    by_duckdb = duckdb.sql(
        f"SELECT p FROM read_parquet('{every}', hive_partitioning = true) ORDER BY n"
    ).fetchall()
    by_polars = pl.read_parquet(every, hive_partitioning=True).sort("n")["p"].to_list()
    by_arrow = ds.dataset(merged.output, partitioning="hive", exclude_invalid_files=True)
    assert [value for (value,) in by_duckdb] == PARTITIONS
    assert by_polars == PARTITIONS
    assert by_arrow.to_table().sort_by("n")["p"].to_pylist() == PARTITIONS


@pytest.mark.parametrize(
    "values",
    [
        ["__HIVE_DEFAULT_PARTITION__", "a"],
        ["007", "7"],
        ["1.5", "1.50"],
        ["1e3"],
        ["2026-1-5"],
        ["12:30:00", None],
        ["", "1"],
        ["null", "2026-01-05"],
        ["TRUE", "false"],
        ["NaN", "1"],
        ["-inf"],
        ["0x10"],
        ["epoch"],
        ["0000-01-01"],
        ["x" * 300],
    ],
)
def test_partitions_that_readers_would_confuse_are_refused(
    merged: Merged, capsys: pytest.CaptureFixture[str], values: list[str | None]
) -> None:
    merged.write("a.jsonl", "".join(json.dumps({"p": value, "n": 1}) + "\n" for value in values))
    assert merged.run("--partition-by", "p") == 2
    refused(capsys, "aggregate.partition_by: 'p': the value ")
    assert merged.files() == []


@pytest.mark.parametrize("name", ["../out", "a/b", "a=b", "_p", ".p", "P", "%41"])
def test_a_partition_column_that_can_not_name_a_folder_is_refused(
    merged: Merged, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    merged.write("a.jsonl", json.dumps({name: 1, "p": 2}) + "\n")
    assert merged.run("--partition-by", name) == 2
    refused(capsys, "aggregate.partition_by: ", repr(name))

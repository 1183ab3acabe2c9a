"""Every input row arrives as written in the file, or is refused in one line."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import json
import os
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_slurm_provider.coordinator.inputs.files import version_of
from airflow_slurm_provider.coordinator.inputs.formats import InputFormat, input_format
from airflow_slurm_provider.coordinator.inputs.reader import open_input
from airflow_slurm_provider.coordinator.inputs.unique_keys import KeyCheck
from airflow_slurm_provider.coordinator.spec.input_section import InputSection
from slurm_worker.errors import UserError
from slurm_worker.testing import MemoryObjects


class MissingBucket(MemoryObjects):
    """A store that reports a missing bucket only when it verifies the bucket."""

    def verify(self) -> None:
        raise UserError("storage.prefix: there is no such bucket")


class OutspokenMissingBucket(MissingBucket):
    """A store that reports a missing bucket at once."""

    def size(self, key: str) -> int | None:
        self.verify()
        return None


def no_bucket(name: str) -> MemoryObjects:
    raise AssertionError(f"nothing here is on S3, least of all in {name}")


def section(path: str, key: str = "id", form: str | None = None) -> InputSection:
    return InputSection(path=path, key=key, format=form)


def read(path: Path, key: str = "id", form: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    return list(open_input(section(str(path), key, form), no_bucket))


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


Write = Callable[[str, "str | bytes"], Path]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.parquet", InputFormat.PARQUET),
        ("s3://lab/a.CSV", InputFormat.CSV),
        ("a.csv.gz", InputFormat.CSV),
        ("a.jsonl", InputFormat.JSONL),
        ("a.b.jsonl.gz", InputFormat.JSONL),
        ("a.tsv", InputFormat.CSV),
        ("a.ndjson", InputFormat.JSONL),
    ],
)
def test_the_suffix_determines_the_format(path: str, expected: InputFormat) -> None:
    assert input_format(section(path, "id")) is expected


def test_a_named_format_wins_over_the_suffix(write: Write) -> None:
    path = write("items.txt", "id,x\n1,a\n")
    assert read(path, form="csv") == [("1", {"id": "1", "x": "a"})]


def test_an_unknown_suffix_or_format_is_refused_at_once() -> None:
    assert "set input.format" in refusal(lambda: open_input(section("a.xlsx", "id"), no_bucket))
    assert "'xml' is not a format" in refusal(
        lambda: open_input(section("a.csv", "id", "xml"), no_bucket)
    )


# --- CSV ---------------------------------------------------------------------------


def test_csv_values_stay_strings_and_empty_ones_are_none(write: Write) -> None:
    path = write("a.csv", '\ufeffid,when,zip,note\n007,2026-11-01,01234,"a\nb"\n8,,1e5,NA\n')
    assert read(path) == [
        ("007", {"id": "007", "when": "2026-11-01", "zip": "01234", "note": "a\nb"}),
        ("8", {"id": "8", "when": None, "zip": "1e5", "note": "NA"}),
    ]


def test_gzip_is_detected_from_the_bytes(write: Write) -> None:
    path = write("a.csv", gzip.compress(b"id\n1\n2\n"))
    assert [key for key, _ in read(path)] == ["1", "2"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"id,x\n1,2\n3\n", "row 2: (line 3) has 1 fields, but the header has 2"),
        (b"id,x\n1,2,3\n", "row 1: (line 2) has 3 fields"),
        (b"id,x,x\n1,2,3\n", "has the column 'x' twice"),
        (b"id,x\n1,\xe9\n", "row 1: is not UTF-8: can't decode byte 0xe9"),
        (b"id,x\n" + b"1,a\n" * 90 + b"2,caf\xe9\n", "row 91: is not UTF-8"),
        (b"id;x\n1;2;3\n", "row 1: (line 2) has 3 fields"),
        (b'id,x\n1,"open\n', "row 1"),
        (b"id,x\n", "has no rows"),
        (b"", "has no rows"),
        (b"id,x\n1,a\n,b\n", "row 2: 'id' is empty"),
        (b"id,x\n" + b"k" * 1025 + b",b\n", "1,025 bytes long"),
        (gzip.compress(b"id,x\n" + b"1,a\n" * 1000, mtime=0)[:-12], "ends too early"),
        (b"\x1f\x8bnonsense", "row 1"),
    ],
)
def test_a_bad_csv_file_is_refused(write: Write, content: bytes, says: str) -> None:
    path = write("a.csv", content)
    message = refusal(lambda: read(path))
    assert says in message
    assert "a.csv" in message


def test_a_missing_column_lists_the_columns_and_the_nearest_name(write: Write) -> None:
    path = write("a.csv", "flight_id,carrier\n1,UA\n")
    message = refusal(lambda: read(path, key="fligth_id"))
    assert "has no column 'fligth_id'" in message
    assert "it has flight_id, carrier" in message
    assert "did you mean 'flight_id'?" in message


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_the_delimiter_is_the_one_with_which_the_header_has_the_key(
    write: Write, delimiter: str
) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([["note, or so", "id"], ["a; b", "1"]])
    path = write("a.csv", f"\n\n{text.getvalue()}")
    assert read(path) == [("1", {"note, or so": "a; b", "id": "1"})]


def test_a_field_may_be_of_any_size(write: Write) -> None:
    path = write("a.csv", "id,x\n1," + "y" * 200_000 + "\n")
    assert [len(item["x"]) for _, item in read(path)] == [200_000]


# --- JSON lines --------------------------------------------------------------------


def test_json_values_arrive_unchanged(write: Write) -> None:
    rows = [
        {"id": 2**70, "x": 1.5, "deep": {"a": [None, True, "\u2028"]}},
        {"id": "é", "only_here": 0},
    ]
    path = write("a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    assert read(path) == [(str(2**70), rows[0]), ("é", rows[1])]


def test_numbers_that_a_double_holds_are_read_in_any_notation(write: Write) -> None:
    texts = ["0.1", "1e5", "-0.0", "100000000000000000000.0", "0.10000000000000000555", "5e-324"]
    lines = [f'{{"id": {number}, "x": {text}}}' for number, text in enumerate(texts)]
    path = write("a.jsonl", "\n".join(lines))
    assert [item["x"] for _, item in read(path)] == [float(text) for text in texts]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": 1', "is not JSON"),
        ("[1]", "is a list; a row is an object"),
        ('{"id": NaN}', "NaN"),
        ('{"id": 1, "x": 1e999}', "that a double does not keep"),
        ('{"id": 1, "x": 1e-999}', "that a double does not keep"),
        ('{"id": "caf\udce9"}', "is not UTF-8: can't decode byte 0xe9 (character 12"),
        ('{"id": 1, "x": {"a": 1, "a": 2}}', "names 'a' twice"),
        ('{"id": 1, "x": 0.12345678901234567890}', "0.12345678901234567890 is a number that"),
        ('{"id": 1, "x": [{"y": 9007199254740993.0}]}', "9007199254740993.0 is a number that"),
        ('{"id": 1, "x": 123456789012345678e1}', "123456789012345678e1 is a number that"),
        ('{"id": 1, "x": "\\ud800"}', "half of a surrogate pair"),
        ('{"id": 1.5}', "'id' is 1.5 (float)"),
        ('{"id": true}', "(bool)"),
        ('{"id": null}', "is empty"),
        ('{"id": [1]}', "(list)"),
        ('{"other": 1}', "has no column 'id'"),
        ("[" * 100_000, "row 2"),
    ],
)
def test_a_bad_json_line_is_refused_by_its_row(write: Write, line: str, says: str) -> None:
    text = '{"id": "good"}\n' + line + "\n"
    path = write("a.jsonl", text.encode(errors="surrogateescape"))
    message = refusal(lambda: read(path))
    assert says in message
    assert "row 2" in message


# --- Parquet -----------------------------------------------------------------------


def test_parquet_values_become_json_by_the_documented_rules(tmp_path: Path) -> None:
    moment = dt.datetime(2013, 1, 1, 5, 0, 0, 123456, tzinfo=dt.timezone.utc)
    table = pa.table(
        {
            "id": pa.array([1, 2], pa.int32()),
            "nan": pa.array([float("nan"), 0.1]),
            "day": pa.array([dt.date(2013, 1, 2), None]),
            "at": pa.array([moment, None], pa.timestamp("ns", "UTC")),
            "local": pa.array([dt.datetime(2013, 1, 1), None], pa.timestamp("ms")),
            "price": pa.array([Decimal("12.50"), None], pa.decimal128(9, 2)),
            "raw": pa.array([b"\x00\xff", None]),
            "word": pa.array(["a", "b"]).dictionary_encode(),
            "list": pa.array([[dt.date(2013, 1, 2)], []], pa.list_(pa.date32())),
            "struct": pa.array([{"f": float("nan"), "n": 1}, None]),
            "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            "big": pa.array([2**64 - 1, 0], pa.uint64()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (first_key, first), (_, second) = read(tmp_path / "a.parquet")
    assert first_key == "1"
    assert first == {
        "id": 1,
        "nan": None,
        "day": "2013-01-02",
        "at": "2013-01-01T05:00:00.123456+00:00",
        "local": "2013-01-01T00:00:00",
        "price": "12.50",
        "raw": "AP8=",
        "word": "a",
        "list": ["2013-01-02"],
        "struct": {"f": None, "n": 1},
        "map": [["k", 1]],
        "big": 2**64 - 1,
    }
    assert second["nan"] == 0.1
    json.dumps(first, allow_nan=False)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array([1.0, float("inf")]), "row 2: column 'x' holds inf"),
        (pa.array([0, 1], pa.timestamp("ns")), "column 'x'"),
        (pa.array([1, 2], pa.duration("s")), "holds a timedelta"),
        (pa.array([0, 10**15], pa.timestamp("ms")), "column 'x'"),
    ],
)
def test_a_parquet_value_without_a_json_form_is_refused(
    tmp_path: Path, column: pa.Array, says: str
) -> None:
    pq.write_table(pa.table({"id": [1, 2], "x": column}), tmp_path / "a.parquet")
    assert says in refusal(lambda: read(tmp_path / "a.parquet"))


def test_times_of_old_writers_are_read_beyond_the_range_of_nanoseconds(tmp_path: Path) -> None:
    last = dt.datetime(9999, 12, 31)
    table = pa.table({"id": [1, 2], "x": pa.array([last, None], pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    assert [item["x"] for _, item in read(tmp_path / "a.parquet")] == ["9999-12-31T00:00:00", None]


def test_nanoseconds_of_old_writers_are_not_cut_off(tmp_path: Path) -> None:
    table = pa.table({"id": [1], "x": pa.array([1], pa.timestamp("ns"))})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    assert "has nanoseconds" in refusal(lambda: read(tmp_path / "a.parquet"))


def test_an_unknown_time_zone_is_refused_by_its_name(tmp_path: Path) -> None:
    table = pa.table({"id": [1], "x": pa.array([0], pa.timestamp("us", "Mars/Base"))})
    pq.write_table(table, tmp_path / "a.parquet")
    message = refusal(lambda: read(tmp_path / "a.parquet"))
    assert "row 1: column 'x'" in message
    assert "Mars/Base" in message


def test_a_damaged_parquet_file_is_refused(tmp_path: Path, write: Write) -> None:
    pq.write_table(pa.table({"id": [1, 2]}), tmp_path / "a.parquet")
    cut = write("b.parquet", (tmp_path / "a.parquet").read_bytes()[:-20])
    assert "b.parquet" in refusal(lambda: read(cut))
    assert "c.parquet" in refusal(lambda: read(write("c.parquet", b"")))


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["id", "id"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert "two columns named 'id'" in refusal(lambda: read(tmp_path / "a.parquet"))


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "i": st.integers(-(2**63), 2**63 - 1),
                "f": st.floats(allow_nan=False, allow_infinity=False) | st.none(),
                "s": st.text(st.characters(codec="utf-8")) | st.none(),
                "b": st.booleans(),
                "l": st.lists(st.integers(0, 9)),
            }
        ),
        min_size=1,
        max_size=30,
    )
)
def test_parquet_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("round") / "a.parquet"
    kinds = {"f": pa.float64(), "s": pa.string(), "l": pa.list_(pa.int64())}
    fields = [(name, kinds.get(name)) for name in rows[0]]
    arrays = {name: pa.array([row[name] for row in rows], kind) for name, kind in fields}
    pq.write_table(pa.table(arrays), path, row_group_size=7)
    assert [item for _, item in read(path, key="i")] == rows


# --- where the file is -------------------------------------------------------------


def test_an_object_on_s3_is_streamed_like_a_file() -> None:
    lab = MemoryObjects()
    lab.put("in/a.csv", b"id\n1\n2\n")
    spec = section("s3://lab/in/a.csv", "id")
    assert [key for key, _ in open_input(spec, {"lab": lab}.__getitem__)] == ["1", "2"]


def test_a_missing_object_names_the_nearest() -> None:
    lab = MemoryObjects()
    lab.put("in/flights.csv", b"id\n1\n")
    spec = section("s3://lab/in/flihgts.csv", "id")
    message = refusal(lambda: list(open_input(spec, lambda _: lab)))
    assert (
        "the object s3://lab/in/flihgts.csv does not exist; did you mean s3://lab/in/flights.csv?"
        in message
    )


@pytest.mark.parametrize("store", [MissingBucket, OutspokenMissingBucket])
def test_a_missing_bucket_is_distinguished_from_a_missing_object(
    store: type[MissingBucket],
) -> None:
    spec = section("s3://lab/in/a.csv", "id")
    message = refusal(lambda: list(open_input(spec, lambda _: store())))
    assert "the bucket 'lab' does not exist" in message


def test_a_copy_of_a_file_has_the_same_version(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id\nx\n")
    os.utime(path, (1, 1))
    spec = section(str(path), "id")
    first = version_of(spec.paths, no_bucket)
    path.write_text("id\nx\n")
    assert version_of(spec.paths, no_bucket) == first
    path.write_text("id\ny\n")
    assert version_of(spec.paths, no_bucket) != first
    assert version_of((str(tmp_path / "b.csv"),), no_bucket) == ""


def test_an_object_that_is_written_again_has_another_version() -> None:
    store = MemoryObjects()
    store.put("in/a.csv", b"id\nx\n")
    spec = section("s3://lab/in/a.csv", "id")
    first = version_of(spec.paths, lambda _name: store)
    assert first == version_of(spec.paths, lambda _name: store) != ""
    store.put("in/a.csv", b"id\nx\ny\n")
    assert version_of(spec.paths, lambda _name: store) != first
    assert version_of(("s3://lab/in/a",), lambda _name: store) == ""


def test_a_missing_file_names_the_nearest(write: Write, tmp_path: Path) -> None:
    write("flights.csv", "id\n1\n")
    message = refusal(lambda: read(tmp_path / "flihgts.csv"))
    assert f"did you mean {tmp_path / 'flights.csv'}?" in message


# --- folders -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.timestamp("us")), pa.struct([("t", pa.timestamp("us"))])]
)
def test_old_times_in_lists_and_structs_are_refused_in_one_line(
    tmp_path: Path, kind: pa.DataType
) -> None:
    table = pa.table({"id": [1], "x": pa.array([None], kind)})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    message = refusal(lambda: read(tmp_path / "a.parquet"))
    assert "holds INT96 times in lists or structs; cast the column" in message


def test_the_files_of_a_folder_are_one_input_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name, text in {"b.csv": "id\n3\n", "a/1.csv": "id\n1\n", "a/2.csv": "id\n2\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in ("_SUCCESS", ".b.csv.crc", ".ipynb_checkpoints/b-checkpoint.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no data")
    assert [key for key, _ in read(tmp_path)] == ["1", "2", "3"]


def test_hive_folders_are_columns(tmp_path: Path) -> None:
    for at, (year, zone) in enumerate([("2020", "007"), ("2021", "a%2Fb"), ("1999", "")]):
        name = f"year={year}/zone={zone or '__HIVE_DEFAULT_PARTITION__'}/{at}.parquet"
        (tmp_path / name).parent.mkdir(parents=True)
        pq.write_table(pa.table({"id": [at]}), tmp_path / name)
    assert [item for _, item in read(tmp_path)] == [
        {"id": 2, "year": 1999, "zone": None},
        {"id": 0, "year": 2020, "zone": "007"},
        {"id": 1, "year": 2021, "zone": "a/b"},
    ]


def test_a_folder_that_contradicts_its_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "year=2020").mkdir()
    (tmp_path / "year=2020/a.jsonl").write_text('{"id": 1, "year": 2021}\n')
    message = refusal(lambda: read(tmp_path))
    assert "row 1: has year = 2021, but its folder has 2020" in message


def test_a_file_of_another_format_in_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id\n1\n")
    (tmp_path / "b.xlsx").write_bytes(b"")
    assert "b.xlsx, which is not a csv file" in refusal(lambda: read(tmp_path))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_an_irregular_file_in_a_folder_is_refused(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    (tmp_path / "a.csv").write_text("id\n1\n")
    make(tmp_path / "b.csv")
    assert f"{tmp_path / 'b.csv'} " in refusal(lambda: read(tmp_path))


def test_a_folder_that_cannot_be_listed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.csv").write_text("id\n1\n")
    scandir = os.scandir

    def refuse(path: str) -> object:  # also as root, who may list every folder
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "closed can't be read: Permission denied" in refusal(lambda: read(tmp_path))


def test_a_link_to_a_folder_is_followed_and_one_to_its_own_parent_is_not(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.csv").write_text("id\n1\n")
    (tmp_path / "in/year=2020").mkdir(parents=True)
    (tmp_path / "in/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/year=2020/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/year=2020/c.csv").write_text("id\n2\n")
    assert read(tmp_path / "in") == [("1", {"id": "1"}), ("2", {"id": "2", "year": 2020})]


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        (b"p=%FF", "the folder 'p=%FF' is not UTF-8; rename it"),
        (b"p=\xff", "the folder 'p=\\udcff' is not UTF-8; rename it"),
        (b"%FF=1", "the folder '%FF=1' is not UTF-8; rename it"),
        (b"p=1/p=2", "two values of 'p'"),
    ],
)
def test_folders_whose_columns_are_not_certain_are_refused(
    tmp_path: Path, folder: bytes, says: str
) -> None:
    path = tmp_path / os.fsdecode(folder)
    path.mkdir(parents=True)
    (path / "a.csv").write_text("id\n1\n")
    assert says in refusal(lambda: read(tmp_path))


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    assert "is a folder without data files" in refusal(lambda: read(tmp_path, form="csv"))


def test_a_prefix_on_s3_is_a_folder_and_not_its_neighbours() -> None:
    lab = MemoryObjects()
    for key in ("in/a/", "in/a/year=1/x.csv", "in/a-old/y.csv", "in/a.csv"):
        lab.put(key, b"id\n" + key.encode() + b"\n" if not key.endswith("/") else b"")
    for path in ("s3://lab/in/a", "s3://lab/in/a/"):
        found = list(open_input(section(path, "id"), {"lab": lab}.__getitem__))
        assert found == [("in/a/year=1/x.csv", {"id": "in/a/year=1/x.csv", "year": 1})]


def test_a_folder_has_another_version_if_one_of_its_files_changes(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("id\n1\n")
    spec = section(str(tmp_path), "id")
    first = version_of(spec.paths, no_bucket)
    assert first == version_of(spec.paths, no_bucket) != ""
    (tmp_path / "b.csv").write_text("id\n1\n2\n")
    assert version_of(spec.paths, no_bucket) != first


# --- duplicate keys ----------------------------------------------------------------


def check_keys(keys: Iterable[str]) -> None:
    listed = [(key, {}) for key in keys]
    with KeyCheck() as check:
        assert list(check.watch(listed)) == listed
        check.check(lambda: ((key, f"row {n:,}") for n, (key, _) in enumerate(listed, 1)))


def test_distinct_keys_pass() -> None:
    check_keys(f"k{n}" for n in range(20_000))


def test_no_keys_at_all_pass() -> None:
    check_keys([])


def test_a_duplicate_is_named_with_both_rows() -> None:
    keys = [f"k{n}" for n in range(5_000)]
    keys[4_321] = "k17"
    message = refusal(lambda: check_keys(keys))
    assert "'k17' is the key of row 18 and of row 4,322" in message


def test_rows_that_repeat_a_key_are_counted() -> None:
    assert "3 rows repeat a key" in refusal(lambda: check_keys(["a", "b", "a", "a", "b"]))


def test_an_input_that_changed_between_two_reads_is_reported() -> None:
    with KeyCheck() as check:
        list(check.watch([("a", {}), ("a", {})]))
        assert "changed while it was read" in refusal(lambda: check.check(lambda: [("a", "row 1")]))


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=2), max_size=60))
def test_the_check_agrees_with_a_set(keys: list[str]) -> None:
    if len(set(keys)) == len(keys):
        check_keys(keys)
    else:
        refusal(lambda: check_keys(keys))

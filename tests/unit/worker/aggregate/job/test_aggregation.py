"""Either exactly what the handlers returned is published, or nothing is."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from slurm_worker.aggregate import AggregationError, RoundSummary
from slurm_worker.errors import ErrorClass, UserError
from slurm_worker.testing import MemoryObjects
from tests.unit.worker.aggregate.finished_job import Job, ok

NETWORK, BAD = ErrorClass.NETWORK, ErrorClass.BAD_INPUT


def refusal(job: Job) -> str:
    with pytest.raises(AggregationError) as caught:
        job.aggregate()
    assert job.paths.manifest not in job.objects.objects
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_rows_of_all_tasks_are_in_order_with_the_key_first(job: Job) -> None:
    job.add_round({"a": ok(n=1), "b": [{"n": 2}, {"n": 3}]}, {"c": [], "d": ok(x="y")})
    manifest = job.aggregate()
    assert job.dataset(manifest) == [
        {"_key": "a", "n": 1, "x": None},
        {"_key": "b", "n": 2, "x": None},
        {"_key": "b", "n": 3, "x": None},
        {"_key": "d", "n": None, "x": "y"},
    ]
    assert (manifest.items, manifest.ok, manifest.rows, manifest.failed) == (4, 4, 4, {})
    assert manifest.schema == {"_key": "string", "n": "int64", "x": "string"}
    assert job.table(manifest.files).column_names[0] == "_key"


def test_the_manifest_lists_files_as_they_are(job: Job) -> None:
    job.add_round({"a": ok(n=1)}, {"b": NETWORK})
    manifest = job.aggregate()
    assert json.loads(job.objects.objects[job.paths.manifest]) == manifest.to_dict()
    for file in (*manifest.files, *manifest.errors):
        assert file.size == len(job.objects.objects[file.key])
    assert all(file.key.startswith(f"{manifest.folder}part-") for file in manifest.files)
    assert all(file.key.startswith("lab/jobs/job-1/errors/") for file in manifest.errors)


def test_failures_go_to_their_own_dataset(job: Job) -> None:
    job.add_round({"a": ok(n=1), "b": NETWORK}, {"c": BAD})
    manifest = job.aggregate()
    assert manifest.failed == {"network": 1, "bad_input": 1}
    assert (manifest.ok, manifest.items) == (1, 3)
    first, second = job.failures(manifest)
    assert (first["_key"], first["class"], first["message"]) == ("b", "network", "no b")
    assert (second["task"], second["round"], second["tries"]) == ("000-00000001", 0, 3)
    assert json.loads(second["item"]) == {"of": "c"}
    assert second["at"].timestamp() == 1e9


def test_a_failure_is_superseded_by_the_last_round_in_which_its_item_occurs(job: Job) -> None:
    job.add_round({"a": NETWORK, "b": NETWORK, "c": BAD, "d": ok(n=4)})
    job.add_round({"a": ok(n=1)}, {"b": NETWORK})
    job.add_round({"b": BAD})
    manifest = job.aggregate()
    assert [row["_key"] for row in job.dataset(manifest)] == ["d", "a"]
    assert [(row["_key"], row["round"]) for row in job.failures(manifest)] == [("c", 0), ("b", 2)]
    assert manifest.failed == {"bad_input": 2}
    assert (manifest.items, manifest.ok) == (4, 2)


def test_a_planned_round_without_tasks_changes_nothing(job: Job) -> None:
    job.add_round({"a": NETWORK})
    job.rounds.append(RoundSummary(1, 0, 0))
    assert job.aggregate().failed == {"network": 1}


def test_a_job_in_which_all_failed_publishes_an_empty_dataset(job: Job) -> None:
    job.add_round({"a": NETWORK}, {"b": NETWORK})
    manifest = job.aggregate()
    assert (manifest.rows, manifest.files, manifest.ok) == (0, (), 0)
    assert manifest.failed == {"network": 2}


# --- aggregating again ----------------------------------------------------------------


def test_a_second_aggregation_publishes_nothing(job: Job) -> None:
    job.add_round({"a": ok(n=1)}, {"b": NETWORK})
    first = job.aggregate()
    before = dict(job.objects.objects)
    assert job.aggregate() == first
    assert job.objects.objects == before
    assert job.log[-1] == "the published dataset is up to date"


def test_readers_of_the_old_version_still_find_its_files(job: Job) -> None:
    job.add_round({"a": ok(n=1)}, {"b": ok(n=2)})
    first = job.aggregate()
    second = job.aggregate(schema={"n": "double"})
    assert job.dataset(second) == [{"_key": "a", "n": 1.0}, {"_key": "b", "n": 2.0}]
    assert job.dataset(first) == [{"_key": "a", "n": 1}, {"_key": "b", "n": 2}]
    assert first.folder != second.folder
    third = job.aggregate(rename={"n": "m"})
    assert job.dataset(third) == [{"_key": "a", "m": 1}, {"_key": "b", "m": 2}]
    assert job.dataset(second)
    assert [entry.version for entry in third.retired] == [first.version, second.version]


class CopyingObjects(MemoryObjects):
    """Counts what the store copies by itself."""

    copied = 0

    def copy(self, source: str, key: str) -> None:
        self.copied += 1
        super().copy(source, key)


def test_a_retry_after_publishing_keeps_the_files_that_did_not_change(job: Job) -> None:
    job.objects = CopyingObjects()
    job.add_round({"a": ok(n=1)}, {"b": ok(n=2), "c": NETWORK})
    first = job.aggregate(rows_per_file=1)
    job.add_round({"c": ok(n=3)})
    second = job.aggregate(rows_per_file=1)
    assert [file.sha256 for file in second.files[:2]] == [file.sha256 for file in first.files]
    assert job.objects.copied == 2
    assert [row["n"] for row in job.dataset(second)] == [1, 2, 3]
    assert (second.failed, second.errors) == ({}, ())
    in_folders = {
        key
        for key in job.objects.objects
        if ("/dataset/" in key or "/errors/" in key) and not key.endswith(".json")
    }
    assert in_folders == {file.key for file in (*first.files, *first.errors, *second.files)}


class DyingObjects(MemoryObjects):
    """The process dies before the manifest is put."""

    armed = True
    uploads = 0

    def put_new(self, key: str, body: bytes) -> bool:
        if key.endswith("_manifest.json") and self.armed:
            raise KeyboardInterrupt
        return super().put_new(key, body)

    def upload(self, key: str, path: str) -> None:
        self.uploads += 1
        super().upload(key, path)


def test_an_interrupted_aggregation_keeps_its_files(job: Job) -> None:
    job.objects = objects = DyingObjects()
    job.add_round({"a": ok(n=1)}, {"b": ok(n=2)}, {"c": ok(n=3)})
    with pytest.raises(KeyboardInterrupt):
        job.aggregate(rows_per_file=1)
    assert objects.uploads == 3
    objects.armed = False
    manifest = job.aggregate(rows_per_file=1)
    assert objects.uploads == 3
    assert [row["n"] for row in job.dataset(manifest)] == [1, 2, 3]


class LosingReplies(MemoryObjects):
    """Writes of the manifest are applied but reported as refused: the reply was lost."""

    then: Callable[[], object] | None = None

    def put_new(self, key: str, body: bytes) -> bool:
        return self._lost(super().put_new(key, body))

    def put_if(self, key: str, body: bytes, tag: str) -> bool:
        return self._lost(super().put_if(key, body, tag))

    def _lost(self, applied: bool) -> bool:
        then, self.then = self.then, None
        if then is not None:
            then()
        assert applied
        return False


def test_a_lost_reply_to_a_publication_is_not_a_failure(job: Job) -> None:
    job.objects = LosingReplies()
    job.add_round({"a": ok(n=1)})
    first = job.aggregate()
    second = job.aggregate(rename={"n": "m"})
    assert json.loads(job.objects.objects[job.paths.manifest]) == second.to_dict()
    assert [entry.version for entry in second.retired] == [first.version]


def test_a_publication_that_is_replaced_before_its_lost_reply_is_not_a_failure(job: Job) -> None:
    job.objects = objects = LosingReplies()
    job.add_round({"a": ok(n=1)})
    objects.then = lambda: job.aggregate(rename={"n": "m"})
    first = job.aggregate()
    standing = json.loads(objects.objects[job.paths.manifest])
    assert standing["number"] == 2
    assert [entry["version"] for entry in standing["retired"]] == [first.version]


def test_a_slow_aggregation_never_replaces_later_results(job: Job) -> None:
    class Later(MemoryObjects):
        """While the first merges, a retry ends and is published."""

        armed = True

        def upload(self, key: str, path: str) -> None:
            super().upload(key, path)
            if self.armed and "/dataset/" in key:
                self.armed = False
                job.add_round({"b": ok(n=2)})
                job.aggregate()

    job.objects = Later()
    job.add_round({"a": ok(n=1), "b": NETWORK})
    with pytest.raises(AggregationError, match="tasks were finished while this merged"):
        job.aggregate()
    standing = json.loads(job.objects.objects[job.paths.manifest])
    assert (standing["ok"], standing["number"]) == (2, 1)


@pytest.mark.parametrize("damage", [b"", b"PAR1 nonsense", None])
def test_a_damaged_or_lost_file_is_written_again(job: Job, damage: bytes | None) -> None:
    job.add_round({"a": ok(n=1)})
    first = job.aggregate()
    key = first.files[0].key
    job.objects.delete(key)
    if damage is not None:
        job.objects.put(key, damage)
    second = job.aggregate()
    assert second.version != first.version
    assert [file.sha256 for file in second.files] == [file.sha256 for file in first.files]
    assert job.dataset(second) == [{"_key": "a", "n": 1}]


def test_a_manifest_of_a_later_release_is_not_replaced(job: Job) -> None:
    job.add_round({"a": ok(n=1)})
    job.objects.put(job.paths.manifest, b'{"v": 3}')
    with pytest.raises(AggregationError, match="later release; upgrade"):
        job.aggregate()
    assert job.objects.objects[job.paths.manifest] == b'{"v": 3}'


@pytest.mark.parametrize("garbage", [b"", b"[]", b'{"v": 2}', b'{"v": 1}', b'{"v": "3"}'])
def test_an_invalid_manifest_is_replaced(job: Job, garbage: bytes) -> None:
    job.add_round({"a": ok(n=1)})
    job.objects.put(job.paths.manifest, garbage)
    manifest = job.aggregate()
    assert json.loads(job.objects.objects[job.paths.manifest]) == manifest.to_dict()


def test_files_and_row_groups_have_about_the_configured_size(job: Job) -> None:
    job.add_round(*({f"k{t}-{i}": ok(n=t) for i in range(10)} for t in range(10)))
    manifest = job.aggregate(rows_per_file=35, row_group_size=15)
    assert [file.rows for file in manifest.files] == [40, 40, 20]
    assert [row["n"] for row in job.dataset(manifest)] == [t for t in range(10) for _ in range(10)]


# --- what is not complete or not as committed is refused -------------------------------


def test_missing_markers_are_counted_and_the_first_named(job: Job) -> None:
    job.add_round(*({f"k{n}": ok(n=n)} for n in range(10)))
    for number in (3, 7):
        job.objects.delete(job.paths.done(f"000-{number:08}"))
    message = refusal(job)
    assert "2 of 10 tasks have no .done marker, the first is 000-00000003" in message
    assert "slurmctl retry job-1" in message


def test_a_marker_of_an_unplanned_task_is_named(job: Job) -> None:
    job.add_round({"a": ok(n=1)}, {"b": ok(n=2)})
    job.rounds = [RoundSummary(0, 1, 1)]
    assert "000-00000001.done belongs to a task that was never planned" in refusal(job)


def test_a_round_with_other_items_than_planned_is_refused(job: Job) -> None:
    job.add_round({"a": ok(n=1)})
    job.rounds = [RoundSummary(0, 1, 2)]
    assert "round 0 was planned with 2 items, but its markers have 1" in refusal(job)


@pytest.mark.parametrize("changes", [{"ok": 3}, {"rows": 7}, {"failed": {"network": 2}, "ok": 0}])
def test_a_marker_whose_counts_do_not_agree_is_refused(
    job: Job, changes: dict[str, object]
) -> None:
    job.add_round({"a": ok(n=1), "b": NETWORK})
    job.change_marker("000-00000000", **changes)
    assert "000-00000000.done has counts that do not agree" in refusal(job)


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'{"v": 1}', b"\xff"])
def test_an_invalid_marker_is_named(job: Job, garbage: bytes) -> None:
    job.add_round({"a": ok(n=1)})
    job.objects.put(job.paths.done("000-00000000"), garbage)
    assert "000-00000000.done is not a valid marker" in refusal(job)


def test_a_marker_of_another_job_is_refused(job: Job) -> None:
    job.add_round({"a": ok(n=1)})
    job.change_marker("000-00000000", job="job-2")
    assert "belongs to job 'job-2'" in refusal(job)


@pytest.mark.parametrize("kind", ["rows", "errors"])
@pytest.mark.parametrize("cut", [0, 10, None])
def test_a_part_that_is_not_as_committed_is_named_with_its_task(
    job: Job, kind: str, cut: int | None
) -> None:
    job.add_round({"a": ok(n=1)}, {"b": ok(n=2), "c": NETWORK})
    marker = job.store.marker("000-00000001")
    part = next(part for part in marker.parts if part.kind == kind)
    if cut is None:
        job.objects.delete(part.key)
    else:
        job.objects.put(part.key, job.objects.objects[part.key][:cut])
    message = refusal(job)
    assert "task 000-00000001" in message
    assert part.key in message


@pytest.mark.parametrize(
    ("content", "rows", "says"),
    [
        ('{"_key": "a", "n": 1}', 1, "the last line is incomplete"),
        ('{"_key": "a", "n"\n', 1, "Expecting"),
        ("[1]\n", 1, "is a list; a row is an object"),
        ('{"n": 1}\n', 1, "is not an object with '_key'"),
        ('{"_key": 1}\n', 1, "is not an object with '_key'"),
        ('{"_key": "a", "n": NaN}\n', 1, "holds NaN"),
        ('{"_key": "a"}\n{"_key": "a"}\n', 1, "has 2 rows, but its marker says 1"),
        ('{"_key": "a"}\n{"_key": "z"}\n', 2, "rows of 2 items, but its marker says that 1 "),
        ("", 1, "has 0 rows"),
    ],
)
def test_a_part_with_invalid_content_is_named(job: Job, content: str, rows: int, says: str) -> None:
    job.add_round({"a": ok(n=1)})
    job.replace_rows("000-00000000", content, rows)
    message = refusal(job)
    assert says in message
    assert "parts/000-00000000/" in message


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ('{"_key": "a"}\n{"_key": "b"}\n{"_key": "c"}\n', '{"_key": "d"}\n', "3 rows, but"),
        ('{"_key": "a"}\n', '{"_key": "b"}\n{"_key": "c"}\n{"_key": "d"}\n', "1 rows, but"),
        ('{"_key": "a"}\n{"_key":\n', '"b"}\n{"_key": "c"}\n{"_key": "d"}\n', "can't be read"),
        ('{"_key": "a"}\n{"_key": "b",\n', '"n": {}}\n{"_key": "c"}\n', "can't be read"),
    ],
)
def test_extra_rows_of_one_part_do_not_hide_missing_rows_of_the_next(
    job: Job, first: str, second: str, says: str
) -> None:
    job.add_round({"a": ok(n=1), "b": ok(n=2)}, {"c": ok(n=3), "d": ok(n=4)})
    job.replace_rows("000-00000000", first, 2)
    job.replace_rows("000-00000001", second, 2)
    with pytest.raises(AggregationError, match=says) as refused:
        job.aggregate({"n": "int64"})
    assert "parts/000-00000000/" in str(refused.value)


def test_error_classes_that_differ_from_the_marker_are_refused(job: Job) -> None:
    job.add_round({"a": NETWORK})
    job.change_marker("000-00000000", failed={"timeout": 1})
    assert "its error classes are not those of its marker" in refusal(job)


def test_a_retried_item_that_never_failed_is_refused(job: Job) -> None:
    job.add_round({"a": ok(n=1), "b": NETWORK})
    job.add_round({"a": ok(n=1)})
    message = refusal(job)
    assert "the input has 2 items, 2 succeeded and 1 failed" in message


def test_a_lost_segment_of_a_retry_is_refused(job: Job) -> None:
    job.add_round({"a": NETWORK})
    job.add_round({"a": ok(n=1)})
    job.objects.delete(job.paths.segment(1, 0))
    assert "0 different items, but 1 were planned" in refusal(job)


class GrowingObjects(MemoryObjects):
    """A task is finished while the dataset is uploaded."""

    def upload(self, key: str, path: str) -> None:
        super().upload(key, path)
        self.put("lab/jobs/job-1/done/001-00000000.done", b"{}")


def test_a_job_that_changes_meanwhile_is_not_published(job: Job) -> None:
    job.objects = GrowingObjects()
    job.add_round({"a": ok(n=1)})
    assert "tasks were finished while this merged" in refusal(job)


# --- other names, other orders ---------------------------------------------------------


def by_city(job: Job) -> None:
    rows = [("b", "Oslo", 3), ("a", "Lima", 1), ("d", None, 4), ("c", "Oslo", 2), ("e", "Lima", 5)]
    job.add_round(*({key: ok(city=city, n=n)} for key, city, n in rows))


def test_columns_are_renamed(job: Job) -> None:
    by_city(job)
    manifest = job.aggregate(rename={"n": "number"}, schema={"n": "int64", "city": "string"})
    assert manifest.schema == {"_key": "string", "number": "int64", "city": "string"}
    assert [row["number"] for row in job.dataset(manifest)] == [3, 1, 4, 2, 5]


def test_rows_are_sorted_over_all_files(job: Job) -> None:
    by_city(job)
    manifest = job.aggregate(sort_by=("city", "n"), rows_per_file=2)
    assert [row["n"] for row in job.dataset(manifest)] == [1, 5, 2, 3, 4]
    assert [file.rows for file in manifest.files] == [2, 2, 1]


def test_partitions_become_folders_and_leave_the_files(job: Job) -> None:
    by_city(job)
    manifest = job.aggregate(partition_by=("city",), sort_by=("n",))
    folders = [file.key.removeprefix(manifest.folder).split("/")[0] for file in manifest.files]
    assert folders == ["city=Lima", "city=Oslo", "city=__HIVE_DEFAULT_PARTITION__"]
    assert job.table(manifest.files).column_names == ["_key", "n"]
    assert [row["n"] for row in job.dataset(manifest)] == [1, 5, 2, 3, 4]


def test_a_partitioned_dataset_is_published_once_and_keeps_unchanged_files(job: Job) -> None:
    job.objects = CopyingObjects()
    by_city(job)
    options = {"partition_by": ("city",), "sort_by": ("n",)}
    first = job.aggregate(**options)
    assert job.aggregate(**options) == first
    second = job.aggregate(**options, rows_per_file=1_000)
    assert job.objects.copied == 3
    assert [file.sha256 for file in second.files] == [file.sha256 for file in first.files]


def test_ties_keep_the_order_of_the_input_and_every_type_survives_the_sort(job: Job) -> None:
    row = {
        "i": 2**62, "u": 2**63 + 5, "d": 0.1, "s": "ü", "b": True,
        "t": "2026-11-23T17:00:00.000001Z", "l": "2026-11-23T17:00:00", "y": "2026-11-23",
        "c": "12.50", "x": "aGk=", "j": {"a": [1]},
        "e": [], "o": {"a": 1.5, "b": ["x", None]}, "m": {"k": 1},
    }  # fmt: skip
    schema = {
        "i": "int64", "u": "uint64", "d": "double", "s": "string", "b": "bool", "t": "timestamp",
        "l": "local_timestamp", "y": "date", "c": "decimal(20, 2)", "x": "binary", "j": "json",
        "e": "list<int64>", "o": "struct<a: double, b: list<string>>", "m": "map<string, int64>",
        "same": "int64", "n": "int64",
    }  # fmt: skip
    job.add_round(*({f"k{n:02}": ok(**row, same=1, n=n)} for n in range(50)))
    plain = job.table(job.aggregate(schema=schema, rows_per_file=7).files)
    ordered = job.table(job.aggregate(schema=schema, rows_per_file=7, sort_by=("same",)).files)
    assert ordered.equals(plain)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sort_by": ("citty",)}, "sort_by: there is no column 'citty'; did you mean 'city'?"),
        ({"partition_by": ("x",)}, "partition_by: there is no column 'x'; the columns are"),
        ({"partition_by": ("l",)}, "column 'l' has type list<int64>; use a column of strings"),
        ({"partition_by": ("city", "l")}, "'l' has type list<int64>"),
        ({"rename": {"x": "y"}}, "aggregate.rename: there is no column 'x'"),
        ({"rename": {"city": "l"}}, "aggregate.rename: two columns would have the same name"),
        ({"rename": {"city": "_key"}}, "aggregate.rename: two columns would have the same name"),
    ],
)
def test_an_unknown_column_is_named(job: Job, options: dict[str, object], says: str) -> None:
    job.add_round({"a": ok(city="Oslo", l=[1])})
    with pytest.raises(UserError) as refused:
        job.aggregate(**options)
    assert says in str(refused.value)


# --- extremes ------------------------------------------------------------------------------


def test_a_value_of_fifty_megabytes_comes_back(job: Job) -> None:
    text = "Ångström " * 5_500_000
    job.add_round({"a": ok(text=text)}, {"b": ok(text="short")})
    manifest = job.aggregate()
    assert [row["text"] == text for row in job.dataset(manifest)] == [True, False]


def test_five_thousand_columns_may_be_declared_but_not_inferred(job: Job) -> None:
    row = {f"c{n}": n for n in range(5_000)}
    job.add_round({"a": ok(**row)}, {"b": ok(**row)})
    manifest = job.aggregate(schema=dict.fromkeys(row, "int64"))
    assert job.dataset(manifest) == [{"_key": "a", **row}, {"_key": "b", **row}]
    with pytest.raises(AggregationError, match="more than 2,000 different fields"):
        job.aggregate()


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda db: db.execute("CREATE TABLE other (a)"), "no such table: rows"),
        (lambda db: db.execute("CREATE TABLE rows (a)"), "no such column: line"),
        (None, "file is not a database"),
    ],
)
def test_an_invalid_sqlite_part_is_named(job: Job, tmp_path: Path, write: Any, says: str) -> None:
    job.formats = ("sqlite",)
    job.add_round({"a": ok(n=1)})
    path = tmp_path / "wrong.sqlite"
    path.write_bytes(b"" if write else b"garbage" * 200)
    if write:
        with closing(sqlite3.connect(path)) as db:
            write(db)
    part = job.store.marker("000-00000000").parts[0]
    data = path.read_bytes()
    job.objects.put(part.key, data)
    digest = hashlib.sha256(data).hexdigest()
    job.change_marker("000-00000000", parts=(replace(part, size=len(data), sha256=digest),))
    message = refusal(job)
    assert says in message
    assert part.key in message

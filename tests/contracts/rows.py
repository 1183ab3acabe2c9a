"""What every `ports.Rows` promises."""

from __future__ import annotations

import threading
import uuid

from slurm_worker.protocol.keys import JobId
from slurm_worker.protocol.ports import Applied, Refused, Rows, Statement
from slurm_worker.protocol.shard_progress import ShardCursors, Stage


def raised(*log: str) -> Statement:
    return Statement(
        "raise",
        "SET #n = if_not_exists(#n, :zero) + :one, "
        "#log = list_append(if_not_exists(#log, :none), :e)",
        "attribute_exists(#pk) AND (attribute_not_exists(#stop) OR #stop <> :stop)",
        {"zero": 0, "one": 1, "none": [], "e": list(log), "stop": "yes"},
    )


def below(limit: int) -> Statement:
    return Statement(
        "below",
        "SET #n = #n + :one REMOVE #log",
        "#n < :limit AND #n >= :zero",
        {"one": 1, "limit": limit, "zero": 0},
    )


class RowsContract:
    """Inherit and give a fixture `rows` and a fixture `pk` (a fresh partition)."""

    def test_a_row_is_created_once_and_the_refusal_returns_it(self, rows: Rows, pk: str) -> None:
        first = rows.put_new({"pk": pk, "sk": "a", "n": 1, "m": {"x": 2}, "l": ["y"]})
        second = rows.put_new({"pk": pk, "sk": "a", "n": 2})
        assert isinstance(first, Applied)
        assert second == Refused({"pk": pk, "sk": "a", "n": 1, "m": {"x": 2}, "l": ["y"]})

    def test_a_missing_row_reads_as_none(self, rows: Rows, pk: str) -> None:
        assert rows.get(pk, "nothing") is None

    def test_an_update_returns_the_row_after_it(self, rows: Rows, pk: str) -> None:
        rows.put_new({"pk": pk, "sk": "a"})
        rows.update(pk, "a", raised("x"))
        result = rows.update(pk, "a", raised("x"))
        assert result == Applied({"pk": pk, "sk": "a", "n": 2, "log": ["x", "x"]})

    def test_a_refused_update_changes_nothing_and_returns_the_row(
        self, rows: Rows, pk: str
    ) -> None:
        rows.put_new({"pk": pk, "sk": "a", "n": 5, "log": ["x"]})
        result = rows.update(pk, "a", below(5))
        assert result == Refused({"pk": pk, "sk": "a", "n": 5, "log": ["x"]})
        assert rows.get(pk, "a") == {"pk": pk, "sk": "a", "n": 5, "log": ["x"]}

    def test_a_comparison_with_an_absent_attribute_is_false(self, rows: Rows, pk: str) -> None:
        rows.put_new({"pk": pk, "sk": "a"})
        result = rows.update(pk, "a", below(5))
        assert isinstance(result, Refused)

    def test_an_update_of_a_missing_row_is_refused_without_a_row(self, rows: Rows, pk: str) -> None:
        assert rows.update(pk, "absent", raised()) == Refused(None)

    def test_remove_deletes_the_attribute(self, rows: Rows, pk: str) -> None:
        rows.put_new({"pk": pk, "sk": "a", "n": 1, "log": ["x"]})
        rows.update(pk, "a", below(5))
        assert rows.get(pk, "a") == {"pk": pk, "sk": "a", "n": 2}

    def test_a_query_gives_rows_in_order_after_a_key_up_to_a_limit(
        self, rows: Rows, pk: str
    ) -> None:
        for name in ("c", "a", "b", "d"):
            rows.put_new({"pk": pk, "sk": name})
        assert [row["sk"] for row in rows.query(pk)] == ["a", "b", "c", "d"]
        assert [row["sk"] for row in rows.query(pk, after="a", limit=2)] == ["b", "c"]

    def test_a_deleted_row_is_gone_and_deleting_again_does_no_harm(
        self, rows: Rows, pk: str
    ) -> None:
        rows.put_new({"pk": pk, "sk": "a"})
        rows.delete(pk, "a")
        rows.delete(pk, "a")
        assert rows.get(pk, "a") is None

    def test_the_stage_of_a_shard_only_rises_and_all_are_read_at_once(self, rows: Rows) -> None:
        cursors = ShardCursors(rows, JobId(f"test-{uuid.uuid4().hex}"), 16)
        told = [(3, Stage.LEASED), (11, Stage.ENDED), (3, Stage.ENDED), (11, Stage.LEASED)]
        for shard, stage in told:
            cursors.record_stage(shard, 1, stage)
        ended = {shard for shard, stage in cursors.stages(1).items() if stage is Stage.ENDED}
        assert ended == {3, 11}
        assert set(cursors.stages(2).values()) == {Stage.READY}, "of an older generation"

    def test_exactly_as_many_concurrent_updates_apply_as_their_condition_allows(
        self, rows: Rows, pk: str
    ) -> None:
        rows.put_new({"pk": pk, "sk": "a", "n": 0})
        applied = []

        def claim() -> None:
            result = rows.update(pk, "a", below(3))
            applied.append(isinstance(result, Applied))

        threads = [threading.Thread(target=claim) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert applied.count(True) == 3

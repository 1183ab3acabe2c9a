"""The simulation of large jobs stands on the real expressions, and finds what it should."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.billion import __main__ as billion
from benchmarks.billion.aws import (
    FIRST_PARTITIONS,
    SPLIT_S,
    WRITE_UNITS,
    Client,
    Services,
    item_bytes,
)
from benchmarks.billion.fleet import Fleet, Preemption, Scenario
from benchmarks.billion.report import (
    Outcome,
    load_table,
    preemption_table,
    settings_table,
    simulate,
    sizes_table,
)
from benchmarks.billion.rows import LeanRows
from benchmarks.folder_services import SqliteRows
from slurm_worker.errors import ServiceError
from slurm_worker.protocol.job_config import LeaseConfig
from slurm_worker.protocol.ports import Applied, Row, Rows, Statement, Value
from slurm_worker.testing import MemoryRows
from tests.contracts.rows import RowsContract, below
from tests.unit.worker.protocol.statements import STATEMENTS

SMALL = Scenario(4_000, 50, 8, 0.1, 8)
#: Values that the statements are tried with: few, so that conditions hold now and then.
VALUES = st.sampled_from([0, 1, 2, "a", "b", "ready", "leased", "done"])


class TestLeanRows(RowsContract):
    @pytest.fixture
    def rows(self) -> Rows:
        return LeanRows()

    @pytest.fixture
    def pk(self) -> str:
        return "p"

    def test_exactly_as_many_concurrent_updates_apply_as_their_condition_allows(
        self, rows: Rows, pk: str
    ) -> None:
        """One thread alone uses these rows: the next in turn stands for the concurrent one."""
        rows.put_new({"pk": pk, "sk": "a", "n": 0})
        results = [rows.update(pk, "a", below(3)) for _ in range(12)]
        assert sum(isinstance(each, Applied) for each in results) == 3


class TestSqliteRows(RowsContract):
    @pytest.fixture
    def rows(self, tmp_path: Path) -> Iterator[Rows]:
        rows = SqliteRows(tmp_path / "rows.sqlite")
        yield rows
        rows.close()

    @pytest.fixture
    def pk(self) -> str:
        return "p"


@settings(max_examples=300)
@given(
    which=st.lists(st.sampled_from(STATEMENTS), min_size=1, max_size=6),
    start=st.dictionaries(
        st.sampled_from(["state", "owner", "attempt", "version", "lease_until", "epoch", "tat"]),
        VALUES,
    ),
    seed=st.integers(0, 1_000),
)
def test_every_statement_does_to_lean_rows_what_it_does_to_the_twin(
    which: list[Statement], start: Mapping[str, Value], seed: int
) -> None:
    lean, twin = LeanRows(), MemoryRows()
    for rows in (lean, twin):
        rows.put_new({"pk": "p", "sk": "a", **start})
    rng = random.Random(seed)
    for chosen in which:
        statement = replace(chosen, values=_values(rng))
        sk = rng.choice(["a", "a", "a", "absent"])
        assert _outcome(lean, sk, statement) == _outcome(twin, sk, statement)
        assert list(lean.query("p")) == list(twin.query("p"))


def _outcome(rows: Rows, sk: str, statement: Statement) -> tuple[str, Row | None]:
    try:
        result = rows.update("p", sk, statement)
    except (ValueError, TypeError):
        return "no sum", None
    return type(result).__name__, result.row


class _Values(dict[str, Value]):
    """A value for any name: lists for what is appended, else one of a few."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    def __missing__(self, name: str) -> Value:
        if name in ("none", "event", "crash"):
            self[name] = [name]
        elif name in ("zero", "one", "cost", "tokens"):
            self[name] = int(name == "one")
        else:
            self[name] = self._rng.choice([0, 1, 2, "a", "b", "ready", "leased", "done"])
        return self[name]


def _values(rng: random.Random) -> Mapping[str, Value]:
    return _Values(rng)


def test_a_row_has_the_size_that_dynamodb_counts() -> None:
    row: Row = {"pk": "abc", "sk": "d", "n": 1_234, "yes": True, "l": ["xy"], "m": {"k": None}}
    # Names 2+2+1+3+1+1; values 3, 1, 1+2, 1, 3+1+2, 3+1+1+1.
    assert item_bytes(row) == 10 + 3 + 1 + 3 + 1 + 6 + 6


def serving(services: Services, seconds: list[float]) -> Client:
    """A client whose waits move the time on."""

    def sleep(wait: float) -> None:
        seconds[0] += wait

    return Client(services, sleep, random.Random(1))


def test_a_partition_serves_no_more_writes_than_it_is_said_to() -> None:
    now = [0.0]
    services = Services(lambda: now[0], 1, FIRST_PARTITIONS)
    partition, _, _ = services.table.of("p")
    served = 0
    for step in range(30_000):
        now[0] = step / 10_000
        if partition.writes.admits(now[0]):
            partition.writes.take(1.0, now[0])
            served += 1
    assert served == pytest.approx(3 * WRITE_UNITS, rel=0.05)


def test_what_stays_throttled_is_given_up_as_the_sdk_does() -> None:
    now = [0.0]
    services = Services(lambda: now[0], 1, FIRST_PARTITIONS)
    client = serving(services, now)
    with pytest.raises(ServiceError):
        client.ask(lambda: False, lambda: None, services.fast, "write")
    assert services.throttled["write"] == 5
    assert 0 < now[0] < 15 + 1


def test_a_partition_that_throttles_for_long_is_split_and_one_with_a_single_key_is_not() -> None:
    services = Services(lambda: 0.0, 1, 1)
    table = services.table
    for key in ("a", "b", "c"):
        table.of(key)
    for second in range(0, int(SPLIT_S) + 30, 30):
        table.heat(table.of("a")[0], float(second))
    assert table.splits == 1
    alone = Services(lambda: 0.0, 1, 1).table
    for second in range(0, int(SPLIT_S) + 30, 30):
        alone.heat(alone.of("a")[0], float(second))
    assert alone.splits == 0


def test_a_calm_job_takes_one_claim_and_one_complete_for_each_task() -> None:
    fleet = Fleet(SMALL)
    tally = fleet.run()
    statements = fleet.services.statements
    assert (tally.done, tally.stolen, tally.lost, tally.left) == (SMALL.tasks, 0, 0, 0)
    assert statements["claim"] - statements["claim refused"] == SMALL.tasks
    assert statements["complete"] == SMALL.tasks
    assert tally.worked_s == pytest.approx(sum(map(fleet.took, range(SMALL.tasks))), rel=0.01)


def test_killed_workers_cost_work_and_no_task() -> None:
    lease = LeaseConfig(ttl_s=12.0, heartbeat_s=3.0, margin_s=2.0)
    killed = replace(
        SMALL, lease=lease, preemption=Preemption(notice=False, back_s=(5.0, 10.0)), checkpoint_s=3
    )
    outcome = simulate("killed", killed)
    assert outcome.done == SMALL.tasks
    assert outcome.stolen > 0
    assert outcome.again_s > 0
    assert outcome.retaken_s is not None


def test_workers_that_are_asked_to_leave_lose_no_lease() -> None:
    asked = replace(SMALL, preemption=Preemption(back_s=(5.0, 10.0)))
    outcome = simulate("asked", asked)
    assert (outcome.done, outcome.stolen) == (SMALL.tasks, 0)


def test_a_limited_job_takes_as_long_as_its_tokens() -> None:
    limited = replace(SMALL, items=1_000, item_s=0.01, rate=20.0)
    outcome = simulate("limited", limited)
    assert outcome.makespan_s >= 0.95 * limited.ideal_s


def test_every_scenario_runs_small_and_has_its_line() -> None:
    found: dict[str, list[Outcome]] = {}
    for group, name, scenario in billion.scenarios(scale=1_000):
        if scenario.rate is None:
            found.setdefault(group, []).append(simulate(name, replace(scenario, item_s=0.01)))
    assert len(sizes_table(found["sizes"])) == len(load_table(found["sizes"])) == 2 + 4
    assert len(settings_table(found["settings"])) == 2 + len(found["settings"])
    assert len(preemption_table(found["preemption"])) == 2 + len(found["preemption"])

"""The report of chaos has every kind of fault, also one that never came about."""

from __future__ import annotations

from collections import Counter

from tests.chaos.faults import ssh
from tests.chaos.faults.disturber import Disturbance
from tests.chaos.report import Report, never_provoked, table
from tests.chaos.sizes import FULL, SHORT
from tests.chaos.user import Verb


def test_a_full_round_plans_every_kind_of_disturbance_and_kills_every_command() -> None:
    assert set(FULL.kinds) >= {what.value for what in Disturbance}
    assert set(FULL.kinds) >= {verb.killed for verb in Verb}
    assert ssh.KIND in FULL.kinds


def test_a_kind_that_no_round_had_is_named_and_one_that_some_round_had_is_not() -> None:
    everything = Counter(dict.fromkeys(SHORT.kinds, 1))
    without = Counter({**everything, ssh.KIND: 0})
    one, other = Report(1, "a", without), Report(2, "b", everything)
    assert never_provoked([one], SHORT) == [ssh.KIND]
    assert never_provoked([one, other], SHORT) == []


def test_the_table_has_a_column_for_each_seed_and_sums_both_ways() -> None:
    one, other = Report(1, "a", Counter({ssh.KIND: 2})), Report(2, "b", Counter({ssh.KIND: 3}))
    lines = table([one, other], SHORT)
    assert lines[0].split()[-5:] == ["seed", "1", "seed", "2", "all"]
    row = next(line for line in lines if line.startswith(ssh.KIND))
    assert row.split()[-3:] == ["2", "3", "5"]
    assert lines[-1].split() == ["all", "2", "3", "5"]

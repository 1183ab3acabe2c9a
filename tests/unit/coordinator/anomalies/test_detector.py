"""A lasting condition is reported once; a condition with too few counts is not reported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from airflow_slurm_provider.coordinator.anomalies.alert import Alert, AnomalyKind
from airflow_slurm_provider.coordinator.anomalies.baseline import Observation
from airflow_slurm_provider.coordinator.anomalies.detector import Detector
from airflow_slurm_provider.coordinator.spec.anomaly_thresholds import AnomaliesSection
from airflow_slurm_provider.coordinator.status.rate_limits import LimitState
from airflow_slurm_provider.coordinator.status.snapshot import Snapshot
from slurm_worker.protocol.job_rows import JobRow, RoundRow
from slurm_worker.protocol.job_totals import JobTotals
from slurm_worker.protocol.keys import JobId, JobState, RoundState, TaskState
from slurm_worker.protocol.slices import Slice
from slurm_worker.protocol.tasks import TaskRow
from tests.unit.coordinator.anomalies.fleet import FOREVER, Fleet, Plan

DEFAULTS = AnomaliesSection()
START_MS = 1_700_000_000_000
SLICE = Slice(0, 0, 1, 100, "")


def done(
    count: int, *, failed: dict[str, int] | None = None, node: str = "n1", first: int = 0
) -> JobTotals:
    """Tasks that took ten seconds each and were done one a second."""
    history = JobTotals()
    failed = failed or {}
    for n in range(first, first + count):
        history.add_row(
            TaskRow(
                0,
                n,
                TaskState.DONE,
                SLICE,
                items_ok=100 - sum(failed.values()),
                failed_by=failed,
                finished_ms=START_MS + n * 1000,
                took_ms=10_000,
                node=node,
            )
        )
    return history


def held(started_s: float, at_s: float, number: int = 900, **changes: object) -> TaskRow:
    """A task that is held by a worker that renews its lease."""
    row = TaskRow(
        0,
        number,
        TaskState.LEASED,
        SLICE,
        owner=f"100_{number}-r0-aa",
        started_ms=int(START_MS + started_s * 1000),
        lease_until_ms=int(START_MS + (at_s + 110) * 1000),
    )
    return replace(row, **changes)  # type: ignore[arg-type]  # the row's own fields


def observation(
    at_s: float,
    history: JobTotals,
    leased: tuple[TaskRow, ...] = (),
    *,
    ready: int = 10,
    lost: int = 0,
    paused: str = "",
    finished: bool = False,
    **changes: object,
) -> Observation:
    job = JobRow(JobId("j"), JobState.OPEN, 8, "i", "c", 1, "", START_MS, paused)
    round_row = RoundRow(0, RoundState.OPEN, "", {}, 1000, 100_000, 1000, START_MS, START_MS)
    at_ms = int(START_MS + at_s * 1000)
    snapshot = Snapshot(job, (round_row,), at_ms, history, leased, (), ready, 0, lost, 0)
    return Observation(snapshot, finished=finished, **changes)  # type: ignore[arg-type]  # its fields


def kinds(alerts: tuple[Alert, ...]) -> list[AnomalyKind]:
    return [each.kind for each in alerts]


def stalled(at_s: float, **changes: object) -> Observation:
    rows = tuple(held(50, at_s, number) for number in range(4))
    return observation(at_s, done(50), rows, **changes)  # type: ignore[arg-type]  # look's arguments


def test_an_episode_ends_after_the_calm_time_and_the_next_has_a_new_number() -> None:
    detector = Detector(AnomaliesSection(calm=60))
    assert not detector.observe(stalled(100)).raised
    (first,) = detector.observe(stalled(500)).raised
    assert (first.kind, first.subject, first.episode) == (AnomalyKind.STALL, "job", 1)
    assert not detector.observe(stalled(510)).raised

    moving = done(51)
    assert not detector.observe(observation(520, moving, (held(515, 520),))).over, (
        "not calm for long yet"
    )
    (over,) = detector.observe(observation(600, moving, (held(515, 600),))).over
    assert (over.id, over.over_ms) == (first.id, START_MS + 600_000)

    rows = tuple(held(601, 1500, number) for number in range(4))
    (second,) = detector.observe(observation(1500, moving, rows)).raised
    assert second.episode == 2


def test_a_condition_that_comes_and_goes_is_one_episode() -> None:
    detector = Detector(AnomaliesSection(calm=600))
    detector.observe(stalled(100))
    raised = [
        alert
        for at_s in range(500, 3000, 100)
        for seen in (stalled(at_s), observation(at_s + 50, done(50), (held(at_s, at_s + 50),)))
        for alert in detector.observe(seen).raised
    ]
    assert [each.id for each in raised] == ["stall/job/1"]


def test_at_the_jobs_end_every_episode_is_over() -> None:
    detector = Detector(DEFAULTS)
    detector.observe(stalled(100))
    detector.observe(stalled(500))
    changes = detector.observe(observation(510, done(60), ready=0, finished=True))
    assert [each.id for each in changes.over] == ["stall/job/1"]


def test_a_paused_job_has_no_stall() -> None:
    detector = Detector(DEFAULTS)
    detector.observe(stalled(100))
    for at_s in (500, 1000, 5000):
        assert not detector.observe(stalled(at_s, paused="alice")).raised
    # Nor has it one as soon as it is resumed.
    assert not detector.observe(stalled(5010)).raised


def test_a_stall_is_reported_later_while_task_durations_are_unknown() -> None:
    detector = Detector(AnomaliesSection(stall=300, stall_first=1800))
    row = (held(0, 10),)
    detector.observe(observation(10, JobTotals(), row))
    assert not detector.observe(observation(1000, JobTotals(), (held(0, 1000),))).raised
    assert kinds(detector.observe(observation(1900, JobTotals(), (held(0, 1900),))).raised) == [
        AnomalyKind.STALL
    ]


def test_items_that_end_within_a_task_are_no_stall() -> None:
    detector = Detector(DEFAULTS)
    for at_s in range(100, 3000, 100):
        rows = (held(50, at_s, items_ok=at_s // 100),)
        assert AnomalyKind.STALL not in kinds(
            detector.observe(observation(at_s, done(50), rows)).raised
        )


def test_a_straggler_names_its_task_worker_and_what_is_usual() -> None:
    detector = Detector(DEFAULTS)
    changes = detector.observe(observation(400, done(100), (held(40, 400),), ready=0))
    (alert,) = changes.raised
    assert (alert.kind, alert.subject) == (AnomalyKind.STRAGGLER, "000-00000900")
    assert "held for 6 min by 100_900-r0-aa" in alert.message
    assert alert.numbers["held_s"] == 360
    assert alert.numbers["median_s"] == pytest.approx(10, rel=0.1)


def test_the_task_that_a_hanging_worker_leased_ahead_is_no_second_straggler() -> None:
    rows = (held(40, 400), held(41, 400, 901, owner="100_900-r0-aa"))
    changes = Detector(DEFAULTS).observe(observation(400, done(100), rows, ready=0))
    assert [each.subject for each in changes.raised] == ["000-00000900"]


def test_many_stragglers_are_reported_as_one() -> None:
    rows = tuple(held(40, 400, 900 + n) for n in range(20))
    (alert,) = Detector(DEFAULTS).observe(observation(400, done(390), rows)).raised
    assert (alert.kind, alert.subject, alert.numbers["tasks"]) == (
        AnomalyKind.STRAGGLER,
        "several",
        20,
    )


@pytest.mark.parametrize("count", [1, 5, 19])
def test_few_tasks_give_no_usual_duration(count: int) -> None:
    rows = (held(40, 600),)
    assert not Detector(DEFAULTS).observe(observation(600, done(count), rows, ready=0)).raised


def test_one_bad_task_is_not_a_rise_of_the_error_rate() -> None:
    history = done(100)
    history.add(done(1, failed={"bad_input": 100}, first=100))
    assert not Detector(DEFAULTS).observe(observation(102, history, (held(100, 102),))).raised


def test_a_rise_is_reported_by_class_with_the_share_before() -> None:
    history = done(100, failed={"not_found": 5})
    history.add(done(90, failed={"not_found": 5, "network": 40}, first=100))
    (alert,) = Detector(DEFAULTS).observe(observation(191, history, (held(188, 191),))).raised
    assert (alert.kind, alert.subject) == (AnomalyKind.ERROR_RATE, "network")
    assert alert.numbers["share"] == pytest.approx(0.4)
    assert alert.numbers["before"] < 0.15


@pytest.mark.parametrize("tasks", [60, 600])
def test_a_job_that_fails_from_its_start_is_reported_by_a_late_observer(tasks: int) -> None:
    seen = Detector(DEFAULTS).observe(observation(tasks, done(tasks, failed={"network": 70})))
    (alert,) = seen.raised
    assert (alert.kind, alert.subject) == (AnomalyKind.ERROR_RATE, "network")


def test_usual_failures_are_not_reported() -> None:
    history = done(300, failed={"not_found": 45})
    assert not Detector(DEFAULTS).observe(observation(301, history, (held(298, 301),))).raised


def test_a_failing_node_is_reported_and_the_rise_that_it_causes_is_not() -> None:
    history = done(60)
    history.add(done(60, failed={"network": 90}, node="n2", first=60))
    (alert,) = Detector(DEFAULTS).observe(observation(121, history, (held(118, 121),))).raised
    assert (alert.kind, alert.subject) == (AnomalyKind.BAD_NODE, "n2")
    assert "slurm.exclude: n2" in alert.advice


def test_a_rise_on_one_node_is_not_reported_for_the_whole_job() -> None:
    history = done(600, node="n1")
    history.add(done(600, node="n2"))
    history.add(done(60, node="n1", first=600))
    history.add(done(60, failed={"network": 100}, node="n2", first=600))
    seen = observation(660, history, (held(658, 660),))
    # Over the longer time in which nodes are compared, too few of its items have failed.
    assert not Detector(DEFAULTS).observe(seen).raised
    history.add(done(240, node="n1", first=660))
    history.add(done(240, failed={"network": 100}, node="n2", first=660))
    (alert,) = Detector(DEFAULTS).observe(observation(900, history, (held(898, 900),))).raised
    assert (alert.kind, alert.subject) == (AnomalyKind.BAD_NODE, "n2")


def test_leases_that_are_not_renewed_are_lease_loss_and_not_a_stall() -> None:
    detector = Detector(DEFAULTS)
    detector.observe(stalled(100))
    rows = tuple(held(50, 1000, n, lease_until_ms=START_MS + 200_000) for n in range(6))
    assert kinds(detector.observe(observation(1000, done(50), rows)).raised) == [
        AnomalyKind.LEASE_LOSS
    ]


def test_leases_lost_long_ago_are_no_lease_loss() -> None:
    detector = Detector(DEFAULTS)
    for at_s in range(0, 3600, 60):
        seen = observation(at_s, done(at_s // 60 + 1), (held(at_s - 5, at_s),), lost=at_s // 240)
        assert AnomalyKind.LEASE_LOSS not in kinds(detector.observe(seen).raised)


def limit(**changes: object) -> tuple[LimitState, ...]:
    state = LimitState("api", "shared", 10.0, 10.0, 0, 5.0, 100, None)
    return (replace(state, **changes),)  # type: ignore[arg-type]  # its own fields


def test_a_rate_that_stays_cut_is_reported() -> None:
    detector = Detector(AnomaliesSection(limit_after=60))
    cut = {"limits": limit(current_rate=3.0, cuts=4)}
    assert not detector.observe(observation(100, done(99), (held(98, 100),), **cut)).raised  # type: ignore[arg-type]
    assert not detector.observe(observation(140, done(139), (held(138, 140),), **cut)).raised  # type: ignore[arg-type]
    (alert,) = detector.observe(observation(161, done(160), (held(158, 161),), **cut)).raised  # type: ignore[arg-type]
    assert (alert.kind, alert.subject) == (AnomalyKind.LIMIT_STARVED, "api")
    assert "3/s, 30 % of the configured 10/s" in alert.message


def test_a_quota_that_is_used_up_explains_why_nothing_ends() -> None:
    detector = Detector(DEFAULTS)
    used = {"limits": limit(used=1000, quota_per_day=1000)}
    for at_s in (100, 200, 1000, 3000):
        changes = detector.observe(stalled(at_s, **used))
        assert set(kinds(changes.raised)) <= {AnomalyKind.LIMIT_STARVED}
    assert detector.to_dict()["episodes"][0][:4] == ["limit_starved", "api", 1, True]


def test_an_idle_limit_is_reported_with_the_workers_that_would_use_it() -> None:
    detector = Detector(AnomaliesSection(idle_after=600))
    raised = []
    for at_s in range(10, 1000, 30):
        limits = limit(used=at_s // 10, ahead_s=0.0)
        rows = (held(at_s - 5, at_s),)
        raised += detector.observe(
            observation(at_s, done(at_s), rows, limits=limits, workers=2)
        ).raised
    (alert,) = raised
    assert alert.kind is AnomalyKind.LIMIT_IDLE
    assert "about 200 would use the whole limit" in alert.advice


@pytest.mark.parametrize(
    ("dollars", "budget", "expected"),
    [
        (None, 1.0, False),
        (1.0, 0.0, False),
        (1.4, 0.0, False),
        (1.6, 0.0, True),
        (0.1, 0.9, True),
        (0.1, 1.1, False),
    ],
)
def test_cost_is_reported_when_the_whole_job_will_cost_more_than_expected(
    dollars: float | None, budget: float, expected: bool
) -> None:
    # A tenth is done.
    changes = {"dollars": dollars, "estimate": 10.0}
    seen = observation(101, done(100), (held(98, 101),), **changes)  # type: ignore[arg-type]
    changes = Detector(AnomaliesSection(budget=budget)).observe(seen)
    assert kinds(changes.raised) == ([AnomalyKind.COST] if expected else [])


def test_cents_above_the_estimate_are_not_reported() -> None:
    changes = {"dollars": 0.09, "estimate": 0.1}
    seen = observation(101, done(100), (held(98, 101),), **changes)  # type: ignore[arg-type]
    assert not Detector(DEFAULTS).observe(seen).raised


def test_another_watchers_alert_is_not_reported_again() -> None:
    first, second = Detector(DEFAULTS), Detector(DEFAULTS)
    first.observe(stalled(100))
    second.observe(stalled(100))
    (alert,) = first.observe(stalled(500)).raised
    second.adopt(alert)
    assert not second.observe(stalled(510)).raised


def test_the_state_does_not_grow_with_the_job() -> None:
    plan = Plan(
        tasks=400, bundle=5, workers=60, nodes=10, dies=lambda w, _n, t: w % 3 == 0 and t > 60
    )
    detector, sizes = Detector(DEFAULTS), []
    for seen in Fleet(plan).observations():
        detector.observe(seen)
        sizes.append(len(str(detector.to_dict())))
    assert max(sizes) < 20_000


def test_a_job_that_only_hangs_from_its_start_is_a_stall() -> None:
    plan = Plan(slowness=lambda *_: FOREVER, most_s=2400.0, interval_s=60.0)
    detector = Detector(DEFAULTS)
    raised = [each for seen in Fleet(plan).observations() for each in detector.observe(seen).raised]
    assert kinds(tuple(raised)) == [AnomalyKind.STALL]


def steps(*shares: tuple[int, int]) -> JobTotals:
    """So many tasks with so many failed items each, one set after the other."""
    history, first = JobTotals(), 0
    for count, failing in shares:
        failed = {"network": failing} if failing else {}
        history.add(done(count, failed=failed, first=first))
        first += count
    return history


def test_failures_long_before_the_first_observation_are_reported() -> None:
    detector = Detector(AnomaliesSection(window=200))
    assert not detector.observe(observation(60, steps((60, 0)))).raised
    (alert,) = detector.observe(observation(180, steps((60, 0), (120, 50)))).raised
    assert (alert.kind, alert.subject) == (AnomalyKind.ERROR_RATE, "network")
    assert alert.numbers["before"] < 0.1


def test_failures_that_are_over_are_not_reported_again() -> None:
    detector = Detector(AnomaliesSection(window=200, calm=20))
    raised, over = [], []
    for at_s in range(60, 800, 10):
        bad, good = min(max(at_s - 60, 0), 120), max(at_s - 180, 0)
        changes = detector.observe(observation(at_s, steps((60, 0), (bad, 50), (good, 0))))
        raised, over = raised + kinds(changes.raised), over + kinds(changes.over)
    assert (raised, over) == ([AnomalyKind.ERROR_RATE], [AnomalyKind.ERROR_RATE])


def test_failures_that_ended_before_the_first_observation_are_not_reported() -> None:
    detector = Detector(AnomaliesSection(window=200))
    assert not detector.observe(observation(60, steps((60, 0)))).raised
    assert not detector.observe(observation(260, steps((60, 0), (100, 50), (100, 0)))).raised


def test_tasks_that_are_leased_and_given_back_for_ever_are_reported() -> None:
    row = TaskRow(0, 7, TaskState.READY, SLICE, attempt=4)
    detector = Detector(DEFAULTS)
    assert not detector.observe(given_back(100, row)).raised, "a few preemptions"
    (alert,) = detector.observe(given_back(200, replace(row, attempt=5))).raised
    assert alert.kind is AnomalyKind.NO_PROGRESS
    assert alert.numbers == {"tasks": 1, "leases": 5}


@pytest.mark.parametrize(
    "changes",
    [{"items_ok": 1}, {"checkpoint": "c"}, {"lost": 1}, {"tries": 1}, {"reopened": 1}],
    ids=str,
)
def test_leases_with_a_result_or_another_end_are_not_no_progress(
    changes: dict[str, Any],
) -> None:
    row = TaskRow(0, 7, TaskState.READY, SLICE, attempt=5, **changes)
    assert not Detector(DEFAULTS).observe(given_back(100, row)).raised


def given_back(at_s: float, *rows: TaskRow) -> Observation:
    seen = observation(at_s, done(0))
    return replace(seen, snapshot=replace(seen.snapshot, given_back=rows))

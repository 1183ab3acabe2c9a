"""What the detector makes of recorded runs: precision, recall, and never two alerts for one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from airflow_slurm_provider.coordinator.anomalies.alert import Alert, AnomalyKind
from airflow_slurm_provider.coordinator.anomalies.detector import Detector
from airflow_slurm_provider.coordinator.spec.anomaly_thresholds import AnomaliesSection
from tests.e2e.test_anomalies import EVERY, QUICK
from tests.unit.coordinator.anomalies.recording import RUNS, read_run

FILES = sorted(RUNS.glob("*.jsonl.gz"))
#: One of each kind, the smallest.
ONE_OF_EACH = sorted(
    {
        path.name.split(".")[0]: path
        for path in sorted(FILES, key=lambda each: -each.stat().st_size)
    }.values()
)
#: Of the runs as they are recorded; `docs/guides/anomalies.md` names the same.
LEAST_PRECISION = LEAST_RECALL = 0.95


@dataclass(frozen=True)
class Replayed:
    """A run, judged again."""

    name: str
    alerts: list[Alert]

    @property
    def expected(self) -> set[AnomalyKind]:
        """What must be reported, by the file's name."""
        kind = self.name.split(".")[0]
        return set() if kind == "good" else {AnomalyKind(kind)}

    @property
    def found(self) -> int:
        """Expected anomalies that were reported."""
        return len(self.expected & {each.kind for each in self.alerts})

    @property
    def wrong(self) -> int:
        """Alerts that nothing calls for; a second one of an expected kind is wrong too."""
        return len(self.alerts) - self.found


def thresholds_of(name: str) -> AnomaliesSection:
    """Runs of the stack last seconds, and are judged by what their jobs' config says."""
    kind, _, where = name.partition(".")
    if where != "stack":
        return AnomaliesSection()
    (what,) = [each for each in EVERY if each.name == kind or (kind == "good" and not each.kind)]
    return AnomaliesSection.model_validate({**QUICK, **what.anomalies})


@cache
def replay(path: Path) -> Replayed:
    name = path.name.removesuffix(".jsonl.gz")
    detector = Detector(thresholds_of(name))
    return Replayed(
        name,
        [each for observation in read_run(path) for each in detector.observe(observation).raised],
    )


def test_precision_and_recall_over_all_recorded_runs() -> None:
    runs = [replay(each) for each in FILES]
    expected = sum(len(each.expected) for each in runs)
    found = sum(each.found for each in runs)
    wrong = {each.name: [a.id for a in each.alerts] for each in runs if each.wrong}
    missed = [each.name for each in runs if each.found < len(each.expected)]
    raised = found + sum(each.wrong for each in runs)
    figures = f"{len(runs)} runs, precision {found}/{raised}, recall {found}/{expected}"
    assert found >= LEAST_RECALL * expected, f"{figures}; missed {missed}"
    assert found >= LEAST_PRECISION * raised, f"{figures}; wrong {wrong}"


def test_each_kind_is_among_the_recorded_runs_and_so_are_good_ones() -> None:
    kinds = Counter(path.name.split(".")[0] for path in FILES)
    assert set(kinds) == {"good", *(each.value for each in AnomalyKind)}
    assert kinds["good"] >= 10


def test_an_episode_is_reported_once() -> None:
    for run in map(replay, FILES):
        raised = Counter((each.kind, each.subject) for each in run.alerts)
        assert all(count == 1 for count in raised.values()), run


@pytest.mark.parametrize("path", ONE_OF_EACH, ids=lambda path: path.name.removesuffix(".jsonl.gz"))
def test_a_watcher_that_is_restarted_for_each_observation_reports_the_same(path: Path) -> None:
    thresholds = thresholds_of(replay(path).name)
    raised, state = [], Detector(thresholds).to_dict()
    for observation in read_run(path):
        detector = Detector.from_dict(thresholds, state)
        raised += detector.observe(observation).raised
        state = detector.to_dict()
    assert raised == replay(path).alerts

"""From observations to alerts: which rules hold, and which of these are new.

Pure: no request, no clock of its own. An episode begins when a condition starts to hold, or has
held for as long as its kind requires. It is over when the condition has not held for `calm_s`:

    condition   ····██████··██████████·················
    episode     ····├────────────────────────┤ calm_s  ·
    alert           ▲ one                    ▲ over
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from airflow_slurm_provider.coordinator.anomalies import limit_rules, rules
from airflow_slurm_provider.coordinator.anomalies.alert import Alert, AnomalyKind
from airflow_slurm_provider.coordinator.anomalies.baseline import Baseline, Observation
from airflow_slurm_provider.coordinator.anomalies.rule_context import Detection, RuleContext
from airflow_slurm_provider.coordinator.anomalies.rules import EXPLAINS, Rule
from airflow_slurm_provider.coordinator.spec.anomaly_thresholds import AnomaliesSection
from slurm_worker.protocol.keys import JobState

Key = tuple[AnomalyKind, str]

#: Judged at every observation; the rest only while workers should be working.
_ALWAYS: tuple[Rule, ...] = (rules.error_rate, rules.bad_node, limit_rules.cost)
_AT_WORK: tuple[Rule, ...] = (
    rules.stall,
    rules.throughput,
    rules.straggler,
    rules.lease_loss,
    rules.no_progress,
    limit_rules.limit_starved,
    limit_rules.limit_idle,
)
#: Observations in a row at which a condition must not hold, whatever time is between them.
_CLEAR_OBSERVATIONS = 2
#: Closed episodes whose numbers are kept; older ones are in the audit log.
_MOST_OVER = 200


@dataclass(slots=True)
class Episode:
    """A condition that holds, or has held."""

    number: int = 0  #: of the last alert; 0 where there was none
    open: bool = False  #: the alert was raised, and its episode lasts
    since_ms: int = 0  #: since when the condition holds without a break; 0 where it does not
    held_ms: int = 0  #: when it last held; 0 where it is not known
    clear: int = 0  #: observations in a row at which it did not
    numbers: Mapping[str, float] = field(default_factory=dict)  #: those of the alert


@dataclass(frozen=True, slots=True)
class Changes:
    """What is new after an observation."""

    raised: tuple[Alert, ...] = ()  #: episodes that begin
    #: Alerts whose episodes are over; their texts are in the audit log
    over: tuple[Alert, ...] = ()


class Detector:
    """Detects anomalies of one job; give it each observation, in order.

    `baseline` and `episodes` are what earlier observations have left.
    """

    def __init__(
        self,
        thresholds: AnomaliesSection,
        baseline: Baseline | None = None,
        episodes: Mapping[Key, Episode] | None = None,
    ) -> None:
        self.thresholds = thresholds
        self._baseline = baseline or Baseline()
        self._episodes = dict(episodes or {})

    def observe(self, observation: Observation) -> Changes:
        """Judge one observation."""
        findings = {finding.key: finding for finding in self._judge(observation)}
        self._explain(findings)
        held = (self._hold(observation, finding) for finding in findings.values())
        raised = tuple(alert for alert in held if alert is not None)
        over = self._calm(observation, findings)
        self._forget()
        return Changes(raised, tuple(over))

    def adopt(self, alert: Alert) -> None:
        """Take over an alert that another process has raised, by the audit log."""
        episode = self._episodes.setdefault((alert.kind, alert.subject), Episode())
        if alert.episode >= episode.number:
            episode.number, episode.numbers = alert.episode, alert.numbers
            episode.open = not alert.over_ms

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it."""
        return {
            "memory": self._baseline.to_dict(),
            "episodes": [
                [kind.value, subject, *astuple(episode)]
                for (kind, subject), episode in self._episodes.items()
            ],
        }

    @classmethod
    def from_dict(cls, thresholds: AnomaliesSection, raw: Mapping[str, Any]) -> Detector:
        """Read what `to_dict` wrote."""
        episodes = {
            (AnomalyKind(kind), subject): Episode(*rest) for kind, subject, *rest in raw["episodes"]
        }
        return cls(thresholds, Baseline.from_dict(raw["memory"]), episodes)

    def _judge(self, observation: Observation) -> list[Detection]:
        if _at_rest(observation) or observation.finished:
            self._baseline.reset(observation)
            chosen = _ALWAYS
        else:
            self._baseline.update(observation, self.thresholds)
            chosen = (*_ALWAYS, *_AT_WORK)
        levels = {key: episode.numbers for key, episode in self._episodes.items() if episode.open}
        context = RuleContext(observation, self._baseline, self.thresholds, levels)
        return [finding for rule in chosen for finding in rule(context)]

    def _explain(self, findings: dict[Key, Detection]) -> None:
        """Drop what follows from another anomaly, unless its own alert lasts."""
        lasting = {kind for (kind, _), episode in self._episodes.items() if episode.open}
        explained: set[AnomalyKind] = set()
        for kind in {*lasting, *(kind for kind, _ in findings)}:
            explained |= EXPLAINS.get(kind, frozenset())
        for key in list(findings):
            episode = self._episodes.get(key)
            if key[0] in explained and not (episode and episode.open):
                del findings[key]

    def _hold(self, observation: Observation, finding: Detection) -> Alert | None:
        """Record that a condition holds; the alert, if that is new."""
        episode = self._episodes.setdefault(finding.key, Episode())
        episode.since_ms = episode.since_ms or observation.at_ms
        episode.held_ms, episode.clear = observation.at_ms, 0
        late = finding.kind is AnomalyKind.LIMIT_STARVED
        least_ms = self.thresholds.limit_after * 1000 if late else 0
        if episode.open or observation.at_ms < episode.since_ms + least_ms:
            return None
        episode.open, episode.number = True, episode.number + 1
        episode.numbers = finding.numbers
        job, texts = observation.snapshot.job.job, (finding.message, finding.advice)
        return Alert(job, *finding.key, episode.number, *texts, finding.numbers, observation.at_ms)

    def _calm(self, observation: Observation, findings: Mapping[Key, Detection]) -> list[Alert]:
        """The episodes that are over: all at the job's end, since nothing changes any more."""
        calm_ms = 0 if observation.finished else self.thresholds.calm * 1000
        over = []
        for (kind, subject), episode in self._episodes.items():
            if (kind, subject) in findings:
                continue
            episode.since_ms, episode.clear = 0, episode.clear + 1
            episode.held_ms = episode.held_ms or observation.at_ms
            # The last observation may be hours old: one clear observation is not enough.
            clear = episode.clear >= _CLEAR_OBSERVATIONS or observation.finished
            if episode.open and clear and observation.at_ms >= episode.held_ms + calm_ms:
                episode.open = False
                job, at_ms = observation.snapshot.job.job, observation.at_ms
                over.append(Alert(job, kind, subject, episode.number, "", "", over_ms=at_ms))
        return over

    def _forget(self) -> None:
        closed = [
            (episode.held_ms, key)
            for key, episode in self._episodes.items()
            if not episode.open and not episode.since_ms
        ]
        for _, key in sorted(closed)[: max(0, len(closed) - _MOST_OVER)]:
            del self._episodes[key]


def _at_rest(observation: Observation) -> bool:
    """Whether no worker should work on the job now."""
    job = observation.snapshot.job
    return bool(job.state is not JobState.OPEN or job.paused or job.stop)

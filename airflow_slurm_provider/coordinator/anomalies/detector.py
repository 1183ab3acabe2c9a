"""From looks to alerts: which rules hold, and which of that is news.

Pure: no request, no clock of its own. An episode begins when a condition begins to hold
(or has held for as long as its kind asks), and is over when it has not held for `calm_s`:

    condition   ····██████··██████████·················
    episode     ····├────────────────────────┤ calm_s  ·
    alert           ▲ one                    ▲ over
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_slurm_provider.coordinator.anomalies import limit_rules, rules
from airflow_slurm_provider.coordinator.anomalies.alert import Alert, AnomalyKind
from airflow_slurm_provider.coordinator.anomalies.baseline import Memory
from airflow_slurm_provider.coordinator.anomalies.facts import Facts, Finding
from airflow_slurm_provider.coordinator.anomalies.observation import Observation
from airflow_slurm_provider.coordinator.anomalies.rules import EXPLAINS, Rule
from airflow_slurm_provider.coordinator.spec.anomaly_thresholds import Thresholds
from slurm_worker.protocol.keys import JobState

Key = tuple[AnomalyKind, str]

#: What is judged at every look; the rest only while somebody should be working.
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
#: Looks in a row at which a condition must not hold, whatever time is between them.
_CLEAR_LOOKS = 2
#: Episodes that are over and whose numbers are remembered; older ones are in the trail.
_MOST_OVER = 200


@dataclass(slots=True)
class Episode:
    """A condition that holds, has held, or begins to.

    Args:
        number: of the last alert; 0 where there was none.
        open: the alert was raised, and its episode lasts.
        since_ms: since when the condition holds without a break; 0 where it does not.
        held_ms: when it last held; 0 where nobody remembers.
        clear: looks in a row at which it did not.
        numbers: those of the alert.
    """

    number: int = 0
    open: bool = False
    since_ms: int = 0
    held_ms: int = 0
    clear: int = 0
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class News:
    """What a look came to.

    Args:
        raised: episodes that begin.
        over: alerts whose episodes are over; without their words, which the trail has.
    """

    raised: tuple[Alert, ...] = ()
    over: tuple[Alert, ...] = ()


class Detector:
    """Looks for anomalies of one job; give it each look, in order.

    Args:
        thresholds: when something is one.
        memory: what former looks left.
        episodes: those of former looks.
    """

    def __init__(
        self,
        thresholds: Thresholds,
        memory: Memory | None = None,
        episodes: Mapping[Key, Episode] | None = None,
    ) -> None:
        self.thresholds = thresholds
        self._memory = memory or Memory()
        self._episodes = dict(episodes or {})

    def see(self, look: Observation) -> News:
        """Judge one look."""
        findings = {each.key: each for each in self._judge(look)}
        self._explain(findings)
        raised = [alert for each in findings.values() if (alert := self._hold(look, each))]
        over = self._calm(look, findings)
        self._forget()
        return News(tuple(raised), tuple(over))

    def adopt(self, alert: Alert) -> None:
        """Take over an alert that somebody else has raised, as the trail says."""
        episode = self._episodes.setdefault((alert.kind, alert.subject), Episode())
        if alert.episode >= episode.number:
            episode.number, episode.numbers = alert.episode, alert.numbers
            episode.open = not alert.over_ms

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it."""
        return {
            "memory": self._memory.to_dict(),
            "episodes": [
                [kind.value, subject, *_fields(each)]
                for (kind, subject), each in self._episodes.items()
            ],
        }

    @classmethod
    def from_dict(cls, thresholds: Thresholds, raw: Mapping[str, Any]) -> Detector:
        """Read what `to_dict` wrote."""
        episodes = {
            (AnomalyKind(kind), subject): Episode(*rest) for kind, subject, *rest in raw["episodes"]
        }
        return cls(thresholds, Memory.from_dict(raw["memory"]), episodes)

    def _judge(self, look: Observation) -> list[Finding]:
        if _at_rest(look) or look.finished:
            self._memory.rest(look)
            chosen = _ALWAYS
        else:
            self._memory.note(look, self.thresholds)
            chosen = (*_ALWAYS, *_AT_WORK)
        levels = {key: each.numbers for key, each in self._episodes.items() if each.open}
        facts = Facts(look, self._memory, self.thresholds, levels)
        return [finding for rule in chosen for finding in rule(facts)]

    def _explain(self, findings: dict[Key, Finding]) -> None:
        """Drop what follows from another anomaly, and is not told already."""
        lasting = {kind for (kind, _), each in self._episodes.items() if each.open}
        explained: set[AnomalyKind] = set()
        for kind in {*lasting, *(kind for kind, _ in findings)}:
            explained |= EXPLAINS.get(kind, frozenset())
        for key in list(findings):
            episode = self._episodes.get(key)
            if key[0] in explained and not (episode and episode.open):
                del findings[key]

    def _hold(self, look: Observation, finding: Finding) -> Alert | None:
        """Note that a condition holds; the alert, if that is news."""
        episode = self._episodes.setdefault(finding.key, Episode())
        episode.since_ms = episode.since_ms or look.at_ms
        episode.held_ms, episode.clear = look.at_ms, 0
        least_ms = (
            self.thresholds.limit_after_s * 1000 if finding.kind is AnomalyKind.LIMIT_STARVED else 0
        )
        if episode.open or look.at_ms < episode.since_ms + least_ms:
            return None
        episode.open, episode.number = True, episode.number + 1
        episode.numbers = finding.numbers
        return Alert(
            look.snapshot.job.job,
            finding.kind,
            finding.subject,
            episode.number,
            finding.message,
            finding.advice,
            finding.numbers,
            look.at_ms,
        )

    def _calm(self, look: Observation, findings: Mapping[Key, Finding]) -> list[Alert]:
        """The episodes that are over: at the job's end at once, for nothing will change."""
        calm_ms = 0 if look.finished else self.thresholds.calm_s * 1000
        over = []
        for (kind, subject), episode in self._episodes.items():
            if (kind, subject) in findings:
                continue
            episode.since_ms, episode.clear = 0, episode.clear + 1
            episode.held_ms = episode.held_ms or look.at_ms
            # Nobody may have looked for hours: one clear look then does not tell.
            seen = episode.clear >= _CLEAR_LOOKS or look.finished
            if episode.open and seen and look.at_ms >= episode.held_ms + calm_ms:
                episode.open = False
                ended = Alert(look.snapshot.job.job, kind, subject, episode.number, "", "")
                over.append(ended.ended(look.at_ms))
        return over

    def _forget(self) -> None:
        closed = [
            key for key, each in self._episodes.items() if not each.open and not each.since_ms
        ]
        closed.sort(key=lambda key: self._episodes[key].held_ms)
        for key in closed[: max(0, len(closed) - _MOST_OVER)]:
            del self._episodes[key]


def _fields(episode: Episode) -> list[Any]:
    return [
        episode.number,
        episode.open,
        episode.since_ms,
        episode.held_ms,
        episode.clear,
        dict(episode.numbers),
    ]


def _at_rest(look: Observation) -> bool:
    """Whether nobody is to work on the job now."""
    job = look.snapshot.job
    return bool(job.state is not JobState.OPEN or job.paused or job.stop)

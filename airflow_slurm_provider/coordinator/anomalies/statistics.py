"""The robust statistics that the rules use: medians and their deviations, windows, shares."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from airflow_slurm_provider.coordinator.spec.anomaly_thresholds import (
    LEAST_DURATIONS,
    LEAST_ITEMS,
    LEAST_TASKS,
    SHARE_DEVIATIONS,
    SHARE_RATIO,
    STRAGGLER_DEVIATIONS,
    AnomaliesSection,
)
from slurm_worker.protocol.job_totals import PER_DOUBLING, JobTotals, TimeBucket

#: A median absolute deviation times this estimates a normal standard deviation.
MAD_SCALE = 1.4826
#: The standard error of that estimate from n values, relative, times the root of n.
MAD_ERROR = 1.17


@dataclass(frozen=True, slots=True)
class Usual:
    """How long tasks of this job take, in seconds."""

    median_s: float  #: the median
    #: Longer than this is not by chance: the median and some robust deviations, on the logarithm,
    #: since durations are skewed
    longest_s: float


def usual_durations(done: JobTotals, thresholds: AnomaliesSection) -> Usual | None:
    """What is usual by the tasks that are done; None where those are too few."""
    if done.durations.total() < LEAST_DURATIONS:
        return None
    median_s = done.quantile_ms(0.5) / 1000
    middle = _weighted_median(done.durations)
    distances: Counter[int] = Counter()
    for number, count in done.durations.items():
        distances[abs(number - middle)] += count
    deviation = _weighted_median(distances)
    # A deviation of few tasks is uncertain: two of its standard errors are added.
    upper = deviation * (1 + 2 * MAD_ERROR / math.sqrt(done.durations.total()))
    spread = 2 ** (STRAGGLER_DEVIATIONS * MAD_SCALE * upper / PER_DOUBLING)
    longest_s = median_s * max(thresholds.straggler_ratio, spread)
    return Usual(median_s, max(thresholds.straggler, longest_s))


def spread_of(values: Sequence[float]) -> tuple[float, float]:
    """The median, and the robust standard deviation."""
    middle = median(values)
    return middle, MAD_SCALE * median(abs(value - middle) for value in values)


@dataclass(frozen=True, slots=True)
class Share:
    """Failures among what was tried; `tasks` are the independent units."""

    failed: int = 0
    tried: int = 0
    tasks: int = 0

    @property
    def value(self) -> float:
        """From 0 to 1."""
        return self.failed / self.tried if self.tried else 0.0

    @property
    def enough(self) -> bool:
        """Whether it is worth a comparison."""
        return self.tasks >= LEAST_TASKS and self.tried >= LEAST_ITEMS

    def __add__(self, other: Share) -> Share:
        return Share(self.failed + other.failed, self.tried + other.tried, self.tasks + other.tasks)

    def __sub__(self, other: Share) -> Share:
        return Share(self.failed - other.failed, self.tried - other.tried, self.tasks - other.tasks)


def exceeds(share: Share, usual: Share, rise: float) -> bool:
    """Whether a share is above the usual one: by much, by a factor, and not by chance.

    The last is a two-proportion z-test in which tasks are the units, because items of one
    task fail together.
    """
    if share.value - usual.value < rise or share.value < SHARE_RATIO * usual.value:
        return False
    both = (share + usual).value
    deviation = math.sqrt(both * (1 - both) * (1 / max(1, share.tasks) + 1 / max(1, usual.tasks)))
    return share.value - usual.value >= SHARE_DEVIATIONS * deviation


def at_least(successes: int, tries: int, chance: float) -> float:
    """The probability of so many successes or more, each of which has this chance."""
    return sum(
        math.comb(tries, n) * chance**n * (1 - chance) ** (tries - n)
        for n in range(successes, tries + 1)
    )


@dataclass(frozen=True, slots=True)
class Timeline:
    """Buckets of a stretch of time, without gaps; the last one is complete."""

    start_s: int  #: when the first bucket begins
    width_s: int  #: seconds of a bucket
    buckets: Sequence[TimeBucket]

    @classmethod
    def of(cls, done: JobTotals, since_ms: int, until_ms: int) -> Timeline:
        """What was done in the whole buckets between two moments."""
        width_ms = done.width_s * 1000
        first, last = -(-since_ms // width_ms), until_ms // width_ms
        # Nothing ended before the first bucket there is, however long ago the job began.
        first = max(first, min(done.timeline, default=last))
        empty = TimeBucket()
        buckets = [done.timeline.get(number, empty) for number in range(first, last)]
        return cls(first * done.width_s, done.width_s, buckets)

    def share(self, error_class: str, first: int, last: int | None = None) -> Share:
        """Failures of a class in buckets `first` to `last`."""
        chosen = self.buckets[first:last]
        return Share(
            sum(bucket.failed[error_class] for bucket in chosen),
            sum(bucket.ok + bucket.failed.total() for bucket in chosen),
            sum(bucket.tasks for bucket in chosen),
        )

    def windows(self, length: int) -> list[TimeBucket]:
        """Sums over windows of so many buckets, the last of which ends now."""
        found = []
        for end in range(len(self.buckets), length - 1, -length):
            window = TimeBucket()
            for bucket in self.buckets[end - length : end]:
                window.add(bucket)
            found.append(window)
        return found[::-1]


def _weighted_median(counts: Counter[int]) -> int:
    left = counts.total() / 2
    for number in sorted(counts):
        left -= counts[number]
        if left <= 0:
            return number
    return 0

"""When something is an anomaly: what a job's ``anomalies`` section can set.

The minimum counts can't be set: with fewer, the numbers mean nothing. They are constants here,
with their reasons.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from airflow_slurm_provider.coordinator.spec.field_types import Delay, Seconds, Strict

#: Tasks that must be done before their durations show what is usual. With 20, the median is
#: within a third of the true one, and the median deviation does not depend on two lucky tasks.
LEAST_DURATIONS = 20
#: Tasks that other workers must have ended since a straggler began: otherwise all are slow.
LEAST_SINCE = 5
#: Tasks and items behind a share of failures. The items of one task share their node, their
#: minute and often their fault, so items alone prove little. With fewer than 50 items a share
#: jumps by chance.
LEAST_TASKS = 5
LEAST_ITEMS = 50
#: Tasks that have failures of a class: one bad task is not a rise, however many items it has.
LEAST_TOUCHED = 3
#: Tasks of one window of throughput: with 8, chance alone changes it by a third.
LEAST_PER_WINDOW = 8
#: Windows before the slow ones: a median of fewer only describes the job's start.
LEAST_WINDOWS = 4
#: Windows in a row that must be slow.
SLOW_WINDOWS = 2
#: Stragglers that get an alert each; more of them have one cause, and one alert.
MOST_NAMED = 3
#: Robust standard deviations (1.4826 MAD) of the logarithm of durations: one task in three
#: million, where durations are log-normal.
STRAGGLER_DEVIATIONS = 5.0
#: Standard deviations of a difference between shares, with tasks as the units.
SHARE_DEVIATIONS = 3.0
#: Below this probability, losses on one node are not chance: seven of seven on one of two nodes.
MOST_CHANCE = 0.01
#: Robust standard deviations of the logarithm of the throughput of windows.
SLOW_DEVIATIONS = 3.0
#: A share of failures must be this many times the earlier one, or that of the other nodes.
SHARE_RATIO = 3.0
#: Dollars above the estimate that are worth an alert; cents are not.
LEAST_EXCESS = 1.0

_Part = Annotated[float, Field(gt=0, le=1)]


class AnomaliesSection(Strict):
    """The job's ``anomalies``: whether to detect them, and the thresholds."""

    enabled: bool = True
    """Detect anomalies of this job."""
    calm: Seconds = 300.0
    """An episode is over when its condition has not held for this long."""
    window: Seconds = 300.0
    """Shortest time over which shares, losses and throughput are measured."""
    stall: Seconds = 300.0
    """Shortest time in which no item ends, while tasks are held."""
    stall_first: Seconds = 1800.0
    """The same while it is unknown how long tasks take."""
    straggler: Seconds = 120.0
    """Shortest time that a straggler has been held."""
    straggler_ratio: Annotated[float, Field(gt=1)] = 4.0
    """How many times longer than the median task."""
    error_rise: _Part = 0.1
    """Rise of a class's share of all items."""
    error_first: _Part = 0.5
    """Share of a class that is too high from the job's first items on."""
    throughput_drop: _Part = 0.5
    """Part of the usual throughput that is missing."""
    node_rise: _Part = 0.2
    """A node's share of failed items above that of the others."""
    losses: Annotated[int, Field(ge=1)] = 5
    """Leases lost within the window."""
    limit_after: Delay = 60.0
    """How long a limit must have starved the workers."""
    limit_cut: _Part = 0.5
    """A limit starves workers if at most this part of its configured rate is left."""
    idle_after: Seconds = 600.0
    """Time over which a limit's use is measured."""
    idle_share: _Part = 0.1
    """A limit is idle if at most this part of it is used."""
    cost_ratio: Annotated[float, Field(ge=1)] = 1.5
    """How many times the estimate a job may cost, if no budget is given."""
    budget: Annotated[float, Field(ge=0)] = 0.0
    """Dollars that the workers' AWS requests may cost in all; 0 for none."""

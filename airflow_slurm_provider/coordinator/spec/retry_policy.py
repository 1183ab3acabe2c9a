"""The retry policy: per error class how often, how soon, and with which resources.

Rules have one form: in the job's YAML under ``retry``, and as an operator's ``policy``, which
overrides the job's rules class by class and field by field.

    network: 3                                  # rounds
    timeout: {rounds: 5, backoff: 2m}           # wait before a round, twice as long each time
    out_of_memory: {mem: x2 up to 64G}          # of slurm.mem, again for each round
    walltime: {rounds: 2, time: x1.5}
    node_failure: {exclude_failed_nodes: true}
    bad_input: never

A round has one array, so all its workers get the largest amount that any of its classes needs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from airflow_slurm_provider.coordinator.spec.field_types import Delay, Strict
from airflow_slurm_provider.slurm.options import SlurmOptions
from airflow_slurm_provider.units import format_slurm_time, parse_slurm_memory, parse_slurm_time
from slurm_worker.errors import ErrorClass

_FACTOR = re.compile(r"x(\d+(?:\.\d+)?)(?: up to (\S+))?")
_LONGEST_BACKOFF_S = 6 * 3600.0


def _increase(what: str, forms: str, parse: Callable[[str], int]) -> AfterValidator:
    """Check a factor (``x2 up to 64G``) or an amount (``64G``)."""

    def check(text: str) -> str:
        match = _FACTOR.fullmatch(text)
        try:
            amount = text if match is None else match.group(2)
            if amount:
                parse(amount)
            if match is not None and float(match.group(1)) <= 1:
                raise ValueError
        except ValueError:
            raise ValueError(f"{text!r} is not a valid {what} increase; use {forms}") from None
        return text

    return AfterValidator(check)


_MEMORY = _increase("memory", "a factor (x2, x2 up to 64G) or a size (64G)", parse_slurm_memory)
_TIME = _increase(
    "time", "a factor (x1.5, x2 up to 1-00:00:00) or a time (12:00:00)", parse_slurm_time
)


class RetryRule(Strict):
    """How one error class is retried."""

    rounds: Annotated[int, Field(ge=0, le=100)] = 1
    """How many retry rounds its items and tasks get; `never` is 0."""
    backoff: Delay = 0.0
    """Wait before the first of them starts; twice as long before each further one."""
    mem: Annotated[str, _MEMORY] | None = None
    """Memory per worker: `x2`, `x2 up to 64G` or `64G`; as Slurm counts, `1M` is 2^20 bytes."""
    time: Annotated[str, _TIME] | None = None
    """Time limit per worker: `x1.5`, `x2 up to 1-00:00:00` or `12:00:00`."""
    partition: str | None = None
    """Partition of the retry rounds, instead of the job's."""
    exclude_failed_nodes: bool = False
    """Do not use nodes where this job's workers died of this class."""

    @model_validator(mode="before")
    @classmethod
    def _from_short(cls, value: Any) -> Any:
        if value == "never" or value is False:
            return {"rounds": 0}
        if isinstance(value, int) and not isinstance(value, bool):
            return {"rounds": value}
        if not isinstance(value, (Mapping, RetryRule)):
            raise ValueError(f"{value!r} is not a rule; write never, 5 or {{rounds: 5}}")
        return value


Rules = dict[ErrorClass, RetryRule]
_TRANSIENT = RetryRule(rounds=3, backoff=30.0)
_NEVER = RetryRule(rounds=0)
DEFAULT_RULES: Rules = {
    ErrorClass.NETWORK: _TRANSIENT,
    ErrorClass.RATE_LIMITED: _TRANSIENT,
    ErrorClass.TIMEOUT: _TRANSIENT,
    ErrorClass.AUTH: _NEVER,
    ErrorClass.NOT_FOUND: _NEVER,
    ErrorClass.BAD_INPUT: _NEVER,
    ErrorClass.HANDLER_BUG: _NEVER,
    ErrorClass.OUT_OF_MEMORY: RetryRule(rounds=2, mem="x2"),
    ErrorClass.WALLTIME: RetryRule(rounds=2, time="x2"),
    ErrorClass.PREEMPTED: RetryRule(rounds=3),
    ErrorClass.NODE_FAILURE: RetryRule(rounds=3, exclude_failed_nodes=True),
    ErrorClass.CANCELLED: RetryRule(rounds=1),
    ErrorClass.WORKER_CRASH: RetryRule(rounds=1),
    ErrorClass.UNKNOWN: RetryRule(rounds=1),
}


@dataclass(frozen=True, slots=True)
class RetryContext:
    """What happened to a job so far: the next round's resources depend on it."""

    #: For each earlier retry round, the error classes that it retried
    rounds: Sequence[Collection[str]] = ()
    #: Nodes on which workers died, by error class
    nodes: Mapping[str, Collection[str]] = field(default_factory=dict)
    mem_mb: int = 0  #: memory that Slurm gave each worker, in units of 2^20 bytes; 0 if unknown


@dataclass(frozen=True, slots=True)
class RoundResources:
    """What a round's array gets, over the job's options."""

    slurm: dict[str, str] = field(default_factory=dict)  #: options of the ``slurm`` section
    delay_s: int = 0  #: seconds before it may start
    notes: tuple[str, ...] = ()  #: what could not be increased, and why


class Policy:
    """A rule for every error class: the defaults, and `rules` over them, field by field."""

    def __init__(self, *rules: Mapping[ErrorClass, RetryRule]) -> None:
        self._rules = dict(DEFAULT_RULES)
        for overrides in rules:
            for error_class, rule in overrides.items():
                named = rule.model_dump(exclude_unset=True)
                self._rules[error_class] = self._rules[error_class].model_copy(update=named)

    @property
    def rounds(self) -> dict[str, int]:
        """Retry rounds by error class, without the classes that get none."""
        return {name.value: rule.rounds for name, rule in self._rules.items() if rule.rounds}

    def resources(
        self, base: SlurmOptions, classes: Collection[str], context: RetryContext
    ) -> RoundResources:
        """What a round that retries these classes gets over `base`, the job's options."""
        memory = "mem_per_cpu" if base.mem_per_cpu else "mem"
        base_mem = parse_slurm_memory(base.mem_per_cpu or base.mem or "0")
        base_time = parse_slurm_time(base.time) if base.time else 0
        mem = _ResourceBump(f"slurm.{memory}", base_mem or context.mem_mb, parse_slurm_memory)
        time = _ResourceBump("slurm.time", base_time, parse_slurm_time)
        slurm: dict[str, str] = {}
        delay = 0.0
        excluded: set[str] = set()
        for name in sorted(classes):
            rule = self._rules[ErrorClass(name)]
            times = 1 + sum(name in earlier for earlier in context.rounds)
            delay = max(delay, min(_LONGEST_BACKOFF_S, rule.backoff * 2 ** (times - 1)))
            mem.add(rule.mem, times, f"retry.{name}.mem")
            time.add(rule.time, times, f"retry.{name}.time")
            if rule.partition:
                slurm["partition"] = rule.partition
            if rule.exclude_failed_nodes:
                excluded.update(context.nodes.get(name, ()))
        if mem.value > base_mem:
            slurm[memory] = f"{mem.value}M"
        if time.value > base_time:
            slurm["time"] = format_slurm_time(time.value)
        if excluded:
            slurm["exclude"] = ",".join([*filter(None, [base.exclude]), *sorted(excluded)])
        return RoundResources(slurm, math.ceil(delay), (*mem.notes, *time.notes))


@dataclass(slots=True)
class _ResourceBump:
    """The increase of one resource: the largest that any class of a round needs."""

    name: str  #: the option, for messages
    base: int  #: its amount in the first round; 0 if it is unknown
    parse: Callable[[str], int]  #: reads an amount
    value: int = 0  #: the increased amount; 0 if no class needs one
    notes: list[str] = field(default_factory=list)  #: what could not be increased, and why

    def add(self, text: str | None, times: int, where: str) -> None:
        """Apply the rule `text` of the field `where`, for a class's `times`-th retry."""
        if text is None:
            return
        match = _FACTOR.fullmatch(text)
        if match is None:
            self.value = max(self.value, self.parse(text))
        elif not self.base:
            self.notes.append(f"{where}: can't apply {text}, as {self.name} is not set; set it")
        else:
            raised = math.ceil(self.base * float(match.group(1)) ** times)
            limit = self.parse(match.group(2)) if match.group(2) else raised
            self.value = max(self.value, min(raised, limit))

"""The retry policy: per error class how often, how soon, and with which resources.

One meaning wherever it stands: in the job's YAML under ``retry``, or as an operator's
``policy``, which goes over the job's class by class and field by field.

    network: 3                                  # rounds
    timeout: {rounds: 5, backoff: 2m}           # wait before a round, twice as long each time
    out_of_memory: {mem: x2 up to 64G}          # of slurm.mem, again for each round
    walltime: {rounds: 2, time: x1.5}
    node_failure: {exclude_failed_nodes: true}
    bad_input: never

A round has one array, so all its workers get the most that any of its classes asks for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator

from airflow_slurm_provider.coordinator.spec.field_types import Delay, Strict
from airflow_slurm_provider.slurm.options import SlurmOptions
from airflow_slurm_provider.units import parse_slurm_time
from slurm_worker.errors import ErrorClass, UserError

_SIZE = re.compile(r"(\d+)([KMGT]?)", re.IGNORECASE)
_MEGABYTES = {"K": 1 / 1024, "": 1.0, "M": 1.0, "G": 1024.0, "T": 1024.0**2}
_FACTOR = re.compile(r"x(\d+(?:\.\d+)?)(?: up to (\S+))?")
_LONGEST_BACKOFF_S = 6 * 3600.0


def megabytes(size: str) -> int:
    """Megabytes of a size as Slurm writes it: ``2G``, or ``500``, which are megabytes.

    Raises:
        ValueError: if it is none.
    """
    match = _SIZE.fullmatch(size)
    if match is None:
        raise ValueError(f"{size!r} is not a size; write 500M or 2G")
    return math.ceil(int(match.group(1)) * _MEGABYTES[match.group(2).upper()])


def _is_raise(text: str, example: str, read: Any) -> str:
    match = _FACTOR.fullmatch(text)
    try:
        if match is None:
            read(text)
        elif match.group(2):
            read(match.group(2))
        if match is not None and float(match.group(1)) <= 1:
            raise ValueError
    except ValueError:
        raise ValueError(f"{text!r} is no more of it; write {example}") from None
    return text


def _is_mem(text: str) -> str:
    return _is_raise(text, "x2, x2 up to 64G, or 64G", megabytes)


def _is_time(text: str) -> str:
    return _is_raise(text, "x1.5, x2 up to 1-00:00:00, or 12:00:00", parse_slurm_time)


class RetryRule(Strict):
    """What is done about one error class."""

    rounds: Annotated[int, Field(ge=0, le=100)] = 1
    """How many retry rounds its items and tasks get; `never` is 0."""
    backoff: Delay = 0.0
    """Wait before the first of them starts; twice as long before each further."""
    mem: Annotated[str, AfterValidator(_is_mem)] | None = None
    """Memory per worker: `x2`, `x2 up to 64G` or `64G`."""
    time: Annotated[str, AfterValidator(_is_time)] | None = None
    """Time limit per worker: `x1.5`, `x2 up to 1-00:00:00` or `12:00:00`."""
    partition: str | None = None
    """Another partition."""
    exclude_failed_nodes: bool = False
    """Not on nodes where this job's workers died of this class."""

    @model_validator(mode="before")
    @classmethod
    def _from_short(cls, value: Any) -> Any:
        if value == "never" or value is False:
            return {"rounds": 0}
        if isinstance(value, int) and not isinstance(value, bool):
            return {"rounds": value}
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
_RULES: TypeAdapter[Rules] = TypeAdapter(Rules)


@dataclass(frozen=True, slots=True)
class RetryContext:
    """What a job has gone through, as far as the next round's resources depend on it.

    Args:
        rounds: for each earlier retry round, the error classes that it was about.
        nodes: nodes on which workers died, by error class.
        mem_mb: memory that Slurm gave each worker; 0 where it does not say.
    """

    rounds: Sequence[Collection[str]] = ()
    nodes: Mapping[str, Collection[str]] = field(default_factory=dict)
    mem_mb: int = 0


@dataclass(frozen=True, slots=True)
class RoundResources:
    """What a round's array gets beside, or instead of, the job's options.

    Args:
        slurm: options of the ``slurm`` section.
        delay_s: seconds before it may start.
        notes: what could not be raised, and why.
    """

    slurm: dict[str, str] = field(default_factory=dict)
    delay_s: int = 0
    notes: tuple[str, ...] = ()


class Policy:
    """A rule for every error class.

    Args:
        rules: those that differ from the defaults; fields that one does not name keep theirs.
    """

    def __init__(self, *rules: Mapping[ErrorClass, RetryRule]) -> None:
        self._rules = dict(DEFAULT_RULES)
        for given in rules:
            for error_class, rule in given.items():
                named = rule.model_dump(exclude_unset=True)
                self._rules[error_class] = self._rules[error_class].model_copy(update=named)

    @property
    def rounds(self) -> dict[str, int]:
        """Retry rounds by error class, of those that get any."""
        return {name.value: rule.rounds for name, rule in self._rules.items() if rule.rounds}

    def resources(
        self, base: SlurmOptions, classes: Collection[str], past: RetryContext
    ) -> RoundResources:
        """What a round about these classes gets.

        Args:
            base: the job's options.
            classes: the error classes of what is tried again.
            past: what there was before.
        """
        memory = "mem_per_cpu" if base.mem_per_cpu else "mem"
        given_mem = megabytes(base.mem_per_cpu or base.mem or "0")
        mem = _ResourceBump(f"slurm.{memory}", given_mem or past.mem_mb, megabytes)
        time = _ResourceBump(
            "slurm.time", parse_slurm_time(base.time) if base.time else 0, parse_slurm_time
        )
        slurm: dict[str, str] = {}
        delay = 0.0
        excluded: set[str] = set()
        for name in sorted(classes):
            rule = self._rules[ErrorClass(name)]
            times = 1 + sum(name in each for each in past.rounds)
            delay = max(delay, min(_LONGEST_BACKOFF_S, rule.backoff * 2 ** (times - 1)))
            mem.add(rule.mem, times, f"retry.{name}.mem")
            time.add(rule.time, times, f"retry.{name}.time")
            if rule.partition:
                slurm["partition"] = rule.partition
            if rule.exclude_failed_nodes:
                excluded.update(past.nodes.get(name, ()))
        if mem.most > given_mem:
            slurm[memory] = f"{mem.most}M"
        if time.most > time.base:
            slurm["time"] = _clock_time(time.most)
        if excluded:
            slurm["exclude"] = ",".join([*filter(None, [base.exclude]), *sorted(excluded)])
        return RoundResources(slurm, math.ceil(delay), (*mem.notes, *time.notes))


class _ResourceBump:
    """The most that any class asks for of one resource."""

    def __init__(self, name: str, base: int, read: Callable[[str], int]) -> None:
        self.name = name
        self.base = base
        self.most = 0
        self.notes: list[str] = []
        self._read = read

    def add(self, text: str | None, times: int, where: str) -> None:
        """`text` is of a rule at `where`, whose class is retried for the so-many-th time."""
        if text is None:
            return
        match = _FACTOR.fullmatch(text)
        if match is None:
            self.most = max(self.most, self._read(text))
        elif not self.base:
            self.notes.append(f"{where}: {text} of what? set {self.name}")
        else:
            raised = math.ceil(self.base * float(match.group(1)) ** times)
            limit = self._read(match.group(2)) if match.group(2) else raised
            self.most = max(self.most, min(raised, limit))


def parse_rules(raw: Mapping[str, Any], where: str) -> Rules:
    """Rules as an operator gets them.

    Raises:
        UserError: naming the class, the field and the mend.
    """
    try:
        return _RULES.validate_python(dict(raw))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(str(each) for each in fault["loc"] if each != "[key]")
        mend = str(fault["msg"]).removeprefix("Value error, ")
        raise UserError(f"{where}.{place}: {mend}") from error


def _clock_time(total: int) -> str:
    minutes, secs = divmod(total, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{minutes:02}:{secs:02}"

"""The array's options: Slurm's own names in snake case, validated, as one frozen object."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from airflow_slurm_provider.units import parse_slurm_memory, parse_slurm_time
from slurm_worker.errors import UserError

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SIZES = ("mem", "mem_per_cpu", "tmp")
_NUMBERS = ("cpus_per_task", "throttle", "grace", "nice")
_LISTS = ("extra_args", "setup", "command_prefix")
_LONGEST_GRACE_S = 120
#: Options that the project sets itself or relies on; `extra_args` must not set them.
_OURS = (
    *("array", "job-name", "chdir", "signal", "requeue", "no-requeue"),
    *("output", "error", "input", "open-mode", "wrap", "wait", "parsable", "test-only"),
)
_OURS_SHORT = "aJoeiDWH"


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """Options of ``sbatch``; where None, the site's default applies."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    #: Slurm's limit per worker: ``"30"`` (minutes), ``"02:00:00"`` or ``"1-00:00"``
    time: str | None = None
    mem: str | None = None
    mem_per_cpu: str | None = None
    cpus_per_task: int | None = None
    gres: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    reservation: str | None = None
    nice: int | None = None
    dependency: str | None = None
    licenses: str | None = None
    tmp: str | None = None
    mail_type: str | None = None
    mail_user: str | None = None
    #: The earliest start: ``"20:00"``, ``"2026-12-01T18:00"`` or ``"now+600"`` (seconds)
    begin: str | None = None
    throttle: int | None = None  #: workers that may run at the same time (``%`` of ``--array``)
    #: Seconds before the time limit at which workers get the signal to drain. By default 120, or a
    #: quarter of a short limit. Slurm may send it up to 60 s earlier
    grace: int = _LONGEST_GRACE_S
    #: More ``sbatch`` options, each as one word: ``--hint=nomultithread``
    extra_args: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()  #: shell lines run before the worker: ``module load python/3.12``
    #: Words before the worker's command: ``apptainer exec image.sif``
    command_prefix: tuple[str, ...] = ()

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> SlurmOptions:
        """Check a mapping, such as the ``slurm`` section of a job's YAML.

        Raises:
            UserError: naming the option, the value and the fix.
        """
        known = [option.name for option in fields(cls)]
        checked: dict[str, Any] = {}
        for name, value in raw.items():
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                hint = f"did you mean {near[0]!r}?" if near else "use extra_args for it"
                raise UserError(f"slurm.{name}: is not a known option; {hint}")
            if value is not None:
                try:
                    checked[name] = _check(name, value)
                except ValueError as error:
                    raise UserError(f"slurm.{name}: {error}") from None
        if "time" in checked:
            checked["grace"] = _check_grace(checked.get("grace"), checked["time"])
        return cls(**checked)

    def arguments(self) -> list[str]:
        """The options as ``sbatch`` takes them, except those that the project sets."""
        ours = ("throttle", "grace", *_LISTS)
        named = [
            f"--{option.name.replace('_', '-')}={value}"
            for option in fields(self)
            if option.name not in ours and (value := getattr(self, option.name)) is not None
        ]
        return [*named, *self.extra_args]


def _check(name: str, value: object) -> object:
    """The value; a ValueError says what is wrong with it."""
    if name in _LISTS:
        return _check_list(name, value)
    if name in _NUMBERS:
        return _check_number(name, value)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError(f"{value!r} is not text; quote it")
    if name == "time" and isinstance(value, int):
        # Unquoted, YAML reads 12:00:00 as the number 43200, which Slurm reads as minutes.
        raise ValueError(f'{value} is a number; quote it: "30" (minutes) or "12:00:00"')
    text = str(value)
    if not text or _CONTROL.search(text):
        raise ValueError(f"{text!r} is empty or holds control characters; write one line")
    if name in _SIZES:
        parse_slurm_memory(text)
    if name == "time" and parse_slurm_time(text) == 0:
        raise ValueError(f'{text!r} is not a time above 0; write minutes or "02:00:00"')
    return text


def _check_number(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number; write one, unquoted")
    if value < 1 and name != "nice":
        raise ValueError(f"{value!r} is below 1; write a number above 0")
    return value


def _check_list(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(line, str) for line in value):
        raise ValueError(f"{value!r} is not a list of strings; write one per line")
    for line in value:
        if _CONTROL.search(line):
            raise ValueError(f"{line!r} holds control characters; write one line each")
        if name == "extra_args":
            _check_argument(line)
    return tuple(value)


def _check_grace(grace: int | None, time: str) -> int:
    limit = parse_slurm_time(time)
    if grace is None:
        return min(_LONGEST_GRACE_S, max(1, limit // 4))
    if grace >= limit:
        raise UserError(
            f"slurm.grace: {grace} s is not less than slurm.time {time!r} ({limit} s), so workers "
            "would stop as soon as they start; lower it, or raise slurm.time"
        )
    return grace


def _check_argument(line: str) -> None:
    if not line.startswith("-"):
        raise ValueError(f"{line!r} is not an option; write --name=value")
    long, short = line.startswith("--"), line[1:2]
    if line[2:].split("=")[0] in _OURS if long else short in _OURS_SHORT:
        raise ValueError(f"{line!r} is set by airflow-slurm-provider; remove it")

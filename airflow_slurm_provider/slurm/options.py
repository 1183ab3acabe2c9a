"""The array's options: Slurm's own names in snake case, validated, as one frozen object."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from slurm_worker.errors import UserError

_SIZE = re.compile(r"\d+[KMGT]?", re.IGNORECASE)
_TIME = re.compile(r"\d+|\d+:\d+|\d+:\d+:\d+|\d+-\d+(:\d+){0,2}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SIZES = ("mem", "mem_per_cpu", "tmp")
_NUMBERS = ("cpus_per_task", "throttle", "grace", "nice")
_LISTS = ("extra_args", "setup")
#: What the project sets itself, so that nothing else may.
_OURS = ("--array", "--job-name", "--output", "--error", "--signal", "--requeue", "--wrap")


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    """Options of ``sbatch``; what is None is left to the site's defaults.

    Args:
        throttle: workers that may run at the same time (``%`` of ``--array``).
        grace: seconds before the time limit at which workers are told to drain.
        extra_args: further ``sbatch`` options, each as one word: ``--hint=nomultithread``.
        setup: shell lines run before the worker: ``module load python/3.12``.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
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
    throttle: int | None = None
    grace: int = 120
    extra_args: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any]) -> SlurmOptions:
        """Check a mapping, such as the ``slurm`` section of a job's YAML.

        Raises:
            UserError: naming the option, the value and the mend.
        """
        known = [each.name for each in fields(cls)]
        checked: dict[str, Any] = {}
        for name, value in raw.items():
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                hint = f"did you mean {near[0]!r}?" if near else "use extra_args for it"
                raise UserError(f"slurm.{name}: is not a known option; {hint}")
            if value is not None:
                checked[name] = _check(name, value)
        return cls(**checked)

    def arguments(self) -> list[str]:
        """The options as ``sbatch`` takes them, without those that the project sets."""
        ours = ("throttle", "grace", *_LISTS)
        named = [
            f"--{each.name.replace('_', '-')}={value}"
            for each in fields(self)
            if each.name not in ours and (value := getattr(self, each.name)) is not None
        ]
        return [*named, *self.extra_args]


def _check(name: str, value: object) -> object:
    where = f"slurm.{name}"
    if name in _LISTS:
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise UserError(f"{where}: {value!r} is not a list of strings; write one per line")
        return tuple(_check_line(name, each) for each in value)
    if name in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and name != "nice"):
            raise UserError(f"{where}: {value!r} is not a whole number above 0")
        return value
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise UserError(f"{where}: {value!r} is not text; quote it")
    text = str(value)
    if not text or _CONTROL.search(text):
        raise UserError(f"{where}: {text!r} is empty or holds control characters; write one line")
    if name in _SIZES and not _SIZE.fullmatch(text):
        raise UserError(f"{where}: {text!r} is not a size; write 2G or 2048M")
    if name == "time" and not _TIME.fullmatch(text):
        raise UserError(f'{where}: {text!r} is not a time; write minutes, "02:00:00" or "1-00:00"')
    return text


def _check_line(name: str, line: str) -> str:
    if _CONTROL.search(line):
        raise UserError(f"slurm.{name}: {line!r} holds control characters; write one line each")
    if name == "extra_args":
        if not line.startswith("-"):
            raise UserError(f"slurm.{name}: {line!r} is not an option; write --name=value")
        if line.split("=")[0] in _OURS:
            raise UserError(f"slurm.{name}: {line!r} is set by airflow-slurm-provider; remove it")
    return line

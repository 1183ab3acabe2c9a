"""Sizes, durations, rates and counts: the one place that parses and formats them.

Two bases are in use, and each function says which one is its own. What is configured, and all
that Slurm says, counts in powers of 1,024: ``1GB`` in the YAML is 2^30 bytes. Sizes of files
are shown in powers of 1,000 (MB), sizes of memory in powers of 1,024 (MiB).

Parsers of what a user writes raise a ValueError that says what to write instead.
"""

from __future__ import annotations

import math
import re

#: Regular expressions of what the parsers below accept, for JSON schemas.
DURATION = r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)"
RATE = r"(\d+(?:\.\d+)?)\s*/\s*(s|min|m|h|d)"
SIZE = r"(\d+)\s*(KB|MB|GB|TB)"

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_POWERS = {unit: power for power, unit in enumerate(["", "K", "M", "G", "T", "P"])}
_QUOTA = r"(\d+)\s*/\s*(0*[1-9]\d*)?\s*(s|min|h|d)"
_SLURM_TIME = r"\d+|\d+:\d+|\d+:\d+:\d+|\d+-\d+(:\d+){0,2}"
_SLURM_MEMORY = r"(\d+)([KMGTkmgt]?)"
_ACCOUNTED_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGTP]?)", re.IGNORECASE)
_CPU_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")


def parse_duration(text: str) -> float:
    """Seconds of ``30s``, ``200ms``, ``5m`` (or ``5min``), ``2h`` or ``7d``."""
    match = _match(DURATION, text.strip(), "a duration", "30s, 200ms, 5m or 2h")
    return float(match.group(1)) * _SECONDS[match.group(2)]


def parse_rate(text: str) -> float:
    """Calls per second of ``40/s``, ``600/min`` or ``5000/h``."""
    match = _match(RATE, text.strip(), "a rate", "40/s, 600/min or 5000/h")
    return float(match.group(1)) / _SECONDS[match.group(2)]


def parse_quota(text: str) -> tuple[int, float]:
    """Calls and the window's seconds of a quota: ``600/min``, ``100/10s``, ``5000/h``."""
    match = _match(_QUOTA, text.strip(), "a quota", "600/min, 100/10s or 5000/h")
    return int(match.group(1)), float(match.group(2) or 1) * _SECONDS[match.group(3)]


def parse_size(text: str) -> int:
    """Bytes of ``500MB`` or ``2GB`` in the YAML; base 1,024: 1MB is 2^20 bytes."""
    match = _match(SIZE, text.strip(), "a size", "500MB or 2GB")
    return int(match.group(1)) << 10 * _POWERS[match.group(2)[0]]


def parse_slurm_time(text: str) -> int:
    """Seconds of a time limit as Slurm writes it: minutes, mm:ss, hh:mm:ss or d-hh[:mm[:ss]]."""
    _match(_SLURM_TIME, text, "a time", 'minutes, "02:00:00" or "1-00:00"')
    days, dash, rest = text.rpartition("-")
    numbers = [int(part) for part in rest.split(":")]
    if not dash and len(numbers) < 3:
        numbers.insert(0, 0)  # it begins with the minutes
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_slurm_memory(text: str) -> int:
    """Megabytes, rounded up, of ``--mem``: ``2G``, or ``500`` for megabytes; base 1,024."""
    match = _match(_SLURM_MEMORY, text, "a size", "500M or 2G")
    power = _POWERS[match.group(2).upper() or "M"]
    return math.ceil(int(match.group(1)) * 1024.0 ** (power - _POWERS["M"]))


def parse_accounted_size(text: str) -> int:
    """Bytes of a size in ``sacct``, such as ``4000K``; base 1,024; 0 where there is none."""
    match = _ACCOUNTED_SIZE.fullmatch(text.strip())
    return int(float(match.group(1)) * 1024 ** _POWERS[match.group(2).upper()]) if match else 0


def parse_cpu_time(text: str) -> float:
    """Seconds of ``[days-[hours:]]minutes:seconds[.milliseconds]``; 0 where there is none."""
    match = _CPU_TIME.fullmatch(text.strip())
    if match is None:
        return 0.0
    days, hours, minutes, seconds = match.groups()
    return ((int(days or 0) * 24 + int(hours or 0)) * 60 + int(minutes)) * 60 + float(seconds)


def format_duration(seconds: float) -> str:
    """A duration as a clock shows it: ``1:02:03``; with days, ``2 d 1:02:03``."""
    days, hours, minutes, rest = _parts(seconds)
    text = f"{hours}:{minutes:02}:{rest:02}"
    return f"{days} d {text}" if days else text


def format_slurm_time(seconds: float) -> str:
    """A duration as Slurm takes it: ``1-02:03:04``."""
    days, hours, minutes, rest = _parts(seconds)
    return f"{days}-{hours:02}:{minutes:02}:{rest:02}"


def format_seconds(seconds: float) -> str:
    """A duration, rounded, for a sentence: ``4.2 s``, ``40 s``, ``12 min``, ``3.4 h``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 300:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3 * 3600 else f"{seconds / 3600:,.1f} h"


def format_size(count: int) -> str:
    """Bytes of files: ``512 B``, ``23.4 kB``, ``6.1 MB``; base 1,000."""
    return _scaled(count, 1000, ("kB", "MB", "GB", "TB"))


def format_memory(count: int) -> str:
    """Bytes of memory: ``512.0 KiB``, ``1.5 GiB``; base 1,024, as Slurm counts."""
    return _scaled(count, 1024, ("KiB", "MiB", "GiB", "TiB"))


def format_percent(share: float) -> str:
    """A share between 0 and 1: ``4.2 %``, ``42 %``."""
    return f"{share * 100:.1f} %" if share < 0.1 else f"{share * 100:.0f} %"


def format_count(count: int, noun: str = "") -> str:
    """A number with its thousands apart: ``336,776``; with a noun, ``1 task`` or ``2 tasks``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}" if noun else f"{count:,}"


def _match(pattern: str, text: str, what: str, forms: str) -> re.Match[str]:
    match = re.fullmatch(pattern, text)
    if match is None:
        raise ValueError(f"{text!r} is not {what}; write {forms}")
    return match


def _parts(seconds: float) -> tuple[int, int, int, int]:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return hours // 24, hours % 24, minutes, rest


def _scaled(count: int, base: int, units: tuple[str, ...]) -> str:
    if count < base:
        return f"{count} B"
    value = count / base
    for unit in units[:-1]:
        if value < base:
            return f"{value:.1f} {unit}"
        value /= base
    return f"{value:,.1f} {units[-1]}"

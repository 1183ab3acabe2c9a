"""What workers were given and what they used, from ``sacct``: CPU time and memory.

``TotalCPU`` is what the processes of an element's steps have spent, known once they have
ended: of an element that runs, only what it was given so far is known. ``MaxRSS`` is the
largest sample of a step, so that a short peak may be missed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from airflow_slurm_provider.slurm.accounting import elapsed_s, memory_given, parse_size
from airflow_slurm_provider.slurm.states import ElementState, parse_state

#: The fields that `parse_usage` expects, of elements and of their steps.
USAGE_FORMAT = "JobID,State,Elapsed,AllocCPUS,TotalCPU,ReqMem,MaxRSS"
#: ``[days-[hours:]]minutes:seconds[.milliseconds]``
_CPU_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Usage:
    """One start of an array's element.

    Args:
        restart: how often it had been started before.
        cpus: CPUs that it was given.
        cpu_s: seconds of CPU time that it has used; 0 while it runs.
        mem: bytes of memory that it was given; 0 where Slurm does not say.
        max_rss: most bytes that one of its steps used; 0 where no sample was taken.
    """

    array: str
    element: int
    restart: int
    state: ElementState
    elapsed_s: int
    cpus: int
    cpu_s: float
    mem: int
    max_rss: int

    @property
    def ended(self) -> bool:
        """Whether what it used is known."""
        return self.state.terminal or self.state is ElementState.REQUEUED


@dataclass(frozen=True, slots=True)
class Efficiency:
    """The starts of a job's workers together.

    Args:
        starts: of elements that got a node.
        running: those that have not ended, whose use is not known yet.
        allocated_s: seconds of CPU time that all of them were given.
        ended_s: likewise of those that have ended.
        used_s: seconds of CPU time that these have used.
        mem: bytes of memory that each was given, at most; 0 where Slurm does not say.
        max_rss: most bytes that one of them used; 0 where no sample was taken.
    """

    starts: int
    running: int
    allocated_s: int
    ended_s: int
    used_s: float
    mem: int
    max_rss: int

    @property
    def cpu_share(self) -> float | None:
        """Part of the CPU time given that was used, by those that have ended."""
        return self.used_s / self.ended_s if self.ended_s else None

    @property
    def memory_share(self) -> float | None:
        """Part of the memory given that was used at the peak."""
        return self.max_rss / self.mem if self.mem and self.max_rss else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the names are stable."""
        return {
            "starts": self.starts,
            "running": self.running,
            "cpu_hours_allocated": round(self.allocated_s / 3600, 6),
            "cpu_hours_used": round(self.used_s / 3600, 6),
            "cpu_efficiency": _rounded(self.cpu_share),
            "memory_bytes_given": self.mem,
            "memory_bytes_used": self.max_rss,
            "memory_efficiency": _rounded(self.memory_share),
        }


def efficiency_of(usages: Iterable[Usage]) -> Efficiency:
    """The sum."""
    all_of_them = list(usages)
    ended = [each for each in all_of_them if each.ended]
    return Efficiency(
        starts=len(all_of_them),
        running=len(all_of_them) - len(ended),
        allocated_s=sum(each.elapsed_s * each.cpus for each in all_of_them),
        ended_s=sum(each.elapsed_s * each.cpus for each in ended),
        used_s=sum(each.cpu_s for each in ended),
        mem=max((each.mem for each in all_of_them), default=0),
        max_rss=max((each.max_rss for each in all_of_them), default=0),
    )


def parse_usage(text: str) -> list[Usage]:
    """The starts that got a node, in lines of `USAGE_FORMAT` with duplicates and steps."""
    found: list[Usage] = []
    starts: Counter[tuple[str, int]] = Counter()
    for line in text.splitlines():
        words = line.strip().split("|")
        if len(words) != USAGE_FORMAT.count(",") + 1:
            continue
        job, _, step = words[0].partition(".")
        array, _, element = job.partition("_")
        if not array.isdigit() or not element.isdigit():
            continue  # elements that wait, in one line; or no array
        which = (array, int(element))
        if not step:
            found.append(_start(which, starts[which], words))
            starts[which] += 1
        elif found and (found[-1].array, found[-1].element) == which:
            found[-1] = _with_step(found[-1], words)
    return [each for each in found if each.state is not ElementState.PENDING]


def _start(which: tuple[str, int], restart: int, words: list[str]) -> Usage:
    _, state, elapsed, cpus, cpu_time, requested, max_rss = words
    return Usage(
        array=which[0],
        element=which[1],
        restart=restart,
        state=parse_state(state),
        elapsed_s=elapsed_s(elapsed),
        cpus=int(cpus) if cpus.isdigit() else 0,
        cpu_s=_cpu_s(cpu_time),
        mem=memory_given(requested, cpus),
        max_rss=parse_size(max_rss),
    )


def _with_step(start: Usage, words: list[str]) -> Usage:
    return replace(start, max_rss=max(start.max_rss, parse_size(words[6])))


def _cpu_s(text: str) -> float:
    match = _CPU_TIME.fullmatch(text.strip())
    if match is None:
        return 0.0
    days, hours, minutes, secs = match.groups()
    return ((int(days or 0) * 24 + int(hours or 0)) * 60 + int(minutes)) * 60 + float(secs)


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)

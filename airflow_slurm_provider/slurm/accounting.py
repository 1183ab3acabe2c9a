"""The records of ``sacct``: how each start of an array's element ended, and what it used.

Where memory is enforced by cgroups, Slurm reports OUT_OF_MEMORY. Where it is enforced by
sampling (``OverMemoryKill``), it reports a cancelled step and a failed job: then the memory
used tells such a failure from others. ``MaxRSS`` is the largest sample of a step, so a short
peak may be missed. ``TotalCPU`` is known only once the processes have ended.

A requeued element has one record per start (``sacct -D``), oldest first. The name of a worker
holds its element and restart, so each record belongs to one worker.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from airflow_slurm_provider.slurm.array_state import Element, Elements, job_lines
from airflow_slurm_provider.slurm.exit_codes import error_class_of
from airflow_slurm_provider.slurm.states import ElementState, parse_state
from airflow_slurm_provider.units import parse_accounted_size, parse_cpu_time
from slurm_worker.errors import ErrorClass

#: The fields that the state of an array needs.
STATE_FIELDS = ("JobID", "State", "NodeList", "ExitCode")
#: The fields of a full record, of elements and of their steps.
RECORD_FIELDS = (*STATE_FIELDS, "Elapsed", "AllocCPUS", "TotalCPU", "ReqMem", "MaxRSS")


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One start of an array's element."""

    array: str
    element: int
    restart: int  #: how often the element had been started before
    state: ElementState
    exit_code: str = ""  #: ``<code>:<signal>``
    node: str = ""
    elapsed_s: int = 0  #: seconds that it ran
    max_rss: int = 0  #: most bytes of memory that one of its steps used; 0 without a sample
    mem: int = 0  #: bytes of memory that it was given; 0 where Slurm does not say
    cpus: int = 0  #: CPUs that it was given
    cpu_s: float = 0.0  #: seconds of CPU time that it used; 0 while it runs
    shared: bool = False  #: Slurm has one record for several elements, because they never started

    @property
    def started(self) -> bool:
        """Whether the element got a node, or was cancelled on its own while it waited."""
        return not self.shared and self.state is not ElementState.PENDING

    @property
    def ended(self) -> bool:
        """Whether this start is over, so that its resource use is known."""
        return self.state.terminal or self.state is ElementState.REQUEUED

    @property
    def error_class(self) -> ErrorClass | None:
        """Why its worker died; None where it ended well."""
        if self.state is ElementState.FAILED:
            return error_class_of(self.exit_code)
        return self.state.error_class

    @property
    def worker(self) -> str:
        """The prefix of the names of this start's workers; see `slurm_worker.node.slurm_job`."""
        return f"{self.array}_{self.element}-r{self.restart}-"


def parse_records(text: str, fields: Sequence[str] = RECORD_FIELDS) -> list[JobRecord]:
    """The records in the output of ``sacct -nPD``, with the steps that follow their element."""
    found: list[JobRecord] = []
    starts: Counter[tuple[str, int]] = Counter()
    for job, step, numbers, values in job_lines(text, fields):
        if step:
            if found and job == f"{found[-1].array}_{found[-1].element}":
                found[-1] = _with_step(found[-1], values)
            continue
        for record in _records(job, numbers, values):
            element = (record.array, record.element)
            found.append(replace(record, restart=starts[element]))
            starts[element] += not record.shared
    return found


def elements_of(records: Iterable[JobRecord]) -> Elements:
    """Each element's latest record, as an element of its array."""
    found: Elements = defaultdict(dict)
    for record in records:
        found[record.array][record.element] = Element(record.state, record.exit_code, record.node)
    return found


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Resource use of all starts of a job's workers together."""

    starts: int  #: starts of elements that got a node
    running: int  #: starts that have not ended; their use is not known yet
    allocated_s: int  #: seconds of CPU time that all starts were given
    ended_s: int  #: seconds of CPU time that the ended starts were given
    used_s: float  #: seconds of CPU time that the ended starts used
    mem: int  #: bytes of memory given to a start, at most; 0 where Slurm does not say
    max_rss: int  #: most bytes that a start used; 0 without a sample

    @property
    def cpu_share(self) -> float | None:
        """Used part of the CPU time given to starts that have ended."""
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


def efficiency_of(records: Iterable[JobRecord]) -> Efficiency:
    """The sum over the starts that got a node."""
    started = [record for record in records if record.started]
    ended = [record for record in started if record.ended]
    return Efficiency(
        starts=len(started),
        running=len(started) - len(ended),
        allocated_s=sum(record.elapsed_s * record.cpus for record in started),
        ended_s=sum(record.elapsed_s * record.cpus for record in ended),
        used_s=sum(record.cpu_s for record in ended),
        mem=max((record.mem for record in started), default=0),
        max_rss=max((record.max_rss for record in started), default=0),
    )


def _records(job: str, numbers: list[int], values: Mapping[str, str]) -> Iterator[JobRecord]:
    """One record for each element that the line is about.

    For some seconds Slurm shows a new array as one job without elements: such a line says
    nothing. Cancelled then, the array keeps it: it is shown as element 0.
    """
    state = parse_state(values["State"])
    if not numbers and state is ElementState.CANCELLED:
        numbers = [0]
    array, _, element = job.partition("_")
    cpus = values["AllocCPUS"]
    for number in numbers:
        yield JobRecord(
            array=array,
            element=number,
            restart=0,
            state=state,
            exit_code=values["ExitCode"],
            node=values["NodeList"],
            elapsed_s=int(parse_cpu_time(values["Elapsed"])),
            max_rss=parse_accounted_size(values["MaxRSS"]),
            mem=_memory_given(values["ReqMem"], cpus),
            cpus=int(cpus) if cpus.isdigit() else 0,
            cpu_s=parse_cpu_time(values["TotalCPU"]),
            shared=not element.isdigit(),
        )


def _with_step(record: JobRecord, values: Mapping[str, str]) -> JobRecord:
    state = parse_state(values["State"])
    record = replace(record, max_rss=max(record.max_rss, parse_accounted_size(values["MaxRSS"])))
    over = state is ElementState.CANCELLED and 0 < record.mem < record.max_rss
    if record.state is ElementState.FAILED and (over or state is ElementState.OUT_OF_MEMORY):
        return replace(record, state=ElementState.OUT_OF_MEMORY)
    return record


def _memory_given(requested: str, cpus: str) -> int:
    """Bytes that were requested: ``4G``; in older releases ``4Gn`` a node, ``1Gc`` a CPU."""
    per_cpu = requested.endswith("c") and cpus.isdigit()
    return parse_accounted_size(requested.rstrip("nc")) * (int(cpus) if per_cpu else 1)


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)

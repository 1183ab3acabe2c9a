"""How workers ended that did not end well, from ``sacct``: state, node, memory, time.

Where memory is enforced by cgroups, Slurm says OUT_OF_MEMORY. Where it is enforced by
sampling (``OverMemoryKill``), it says that the step was cancelled and the job failed; then
the memory used tells it from other failures.

A requeued element has a record per start (``sacct -D``), oldest first, so that each
worker, whose name holds element and restart, is told from its twin.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from airflow_slurm_provider.slurm.options import seconds
from airflow_slurm_provider.slurm.states import ElementState, parse_state
from slurm_worker.errors import ErrorClass
from slurm_worker.node.exit_codes import WorkerExit

#: The fields that `parse_endings` expects, of elements and of their steps.
ENDING_FORMAT = "JobID,State,ExitCode,NodeList,Elapsed,MaxRSS,ReqMem,AllocCPUS"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGTP]?)")
_UNITS = {unit: 1024**power for power, unit in enumerate(["", "K", "M", "G", "T", "P"])}
#: What the exit codes of `slurm_worker.node.exit_codes` mean.
_EXIT_CODES = {
    str(WorkerExit.CONFIG.value): ErrorClass.HANDLER_BUG,
    str(WorkerExit.INFRASTRUCTURE.value): ErrorClass.NODE_FAILURE,
    str(WorkerExit.NO_PROGRESS.value): ErrorClass.NODE_FAILURE,
}


@dataclass(frozen=True, slots=True)
class JobRecord:
    """How one start of an array's element ended.

    Args:
        element: its number.
        restart: how often it had been started before.
        error_class: why its worker died; None where it ended well.
        exit_code: ``<code>:<signal>``.
        elapsed_s: seconds that it ran.
        max_rss: most bytes of memory that one of its steps used, as Slurm sampled it.
        mem: bytes of memory that it was given; 0 where Slurm does not say.
    """

    array: str
    element: int
    restart: int
    state: ElementState
    exit_code: str
    node: str
    elapsed_s: int
    max_rss: int
    mem: int = 0

    @property
    def error_class(self) -> ErrorClass | None:
        """See `JobRecord`."""
        if self.state is ElementState.FAILED:
            return _EXIT_CODES.get(self.exit_code.partition(":")[0], ErrorClass.WORKER_CRASH)
        return self.state.error_class

    @property
    def worker(self) -> str:
        """How the names of the workers of this start begin; see `slurm_worker.node.slurm_job`."""
        return f"{self.array}_{self.element}-r{self.restart}-"


def parse_endings(text: str) -> list[JobRecord]:
    """The starts that ended, in lines of `ENDING_FORMAT` with duplicates and steps."""
    found: list[JobRecord] = []
    starts: Counter[tuple[str, int]] = Counter()
    for words in _lines(text):
        job, _, step = words[0].partition(".")
        array, _, element = job.partition("_")
        if not array.isdigit() or not element.isdigit():
            continue  # elements that wait, in one line; or no array
        state = parse_state(words[1])
        size = parse_size(words[5])
        if not step:
            which = (array, int(element))
            allowed = memory_given(words[6], words[7])
            elapsed = elapsed_s(words[4])
            found.append(
                JobRecord(*which, starts[which], state, words[2], words[3], elapsed, size, allowed)
            )
            starts[which] += 1
        elif found:
            last = replace(found[-1], max_rss=max(found[-1].max_rss, size))
            over = state is ElementState.CANCELLED and 0 < last.mem < last.max_rss
            if last.state is ElementState.FAILED and (over or state is ElementState.OUT_OF_MEMORY):
                last = replace(last, state=ElementState.OUT_OF_MEMORY)
            found[-1] = last
    return [each for each in found if each.state.terminal or each.state is ElementState.REQUEUED]


def parse_size(text: str) -> int:
    """Bytes of a size such as ``4000K``; 0 where there is none."""
    match = _SIZE.fullmatch(text.strip().upper())
    return int(float(match.group(1)) * _UNITS[match.group(2)]) if match else 0


def memory_given(requested: str, cpus: str) -> int:
    """Bytes that were asked for: ``4G``; of older releases ``4Gn`` a node, ``1Gc`` a CPU."""
    per_cpu = requested.endswith("c") and cpus.isdigit()
    return parse_size(requested.rstrip("nc")) * (int(cpus) if per_cpu else 1)


def elapsed_s(text: str) -> int:
    """Seconds of a time such as ``1-00:00:01``; 0 where it is none."""
    try:
        return seconds(text.strip())
    except ValueError:
        return 0


def _lines(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        words = line.strip().split("|")
        if len(words) == ENDING_FORMAT.count(",") + 1:
            yield words

"""What Slurm's text says about an array: ``squeue``'s and ``sacct``'s lines, merged.

The queue is right about what is alive, the accounting about how things ended, late:

| squeue      | sacct       | the element is                                            |
| ----------- | ----------- | --------------------------------------------------------- |
| any state   | any         | what the queue says; its exit code comes from sacct       |
| not there   | terminal    | ended, as sacct says                                      |
| not there   | else        | UNKNOWN: gone from the queue, its end not yet recorded    |

For some seconds sacct shows a new array as one plain job, whose number is that of its
last element: such lines say nothing about elements and are passed over (seen on 22.05).
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from airflow_slurm_provider.slurm.states import ElementState, parse_state

log = logging.getLogger(__name__)

#: The fields that the parsers below expect.
QUEUE_FORMAT = "%i|%T|%N|%r"
RECORD_FORMAT = "JobID,State,NodeList,ExitCode"


@dataclass(frozen=True, slots=True)
class Element:
    """One element of an array, as Slurm shows it.

    Args:
        exit_code: ``<code>:<signal>``; empty where Slurm doesn't say.
        node: where it runs or ran.
        reason: why it waits, in Slurm's word.
    """

    state: ElementState
    exit_code: str = ""
    node: str = ""
    reason: str = ""


#: By array and number.
Elements = dict[str, dict[int, Element]]


@dataclass(frozen=True, slots=True)
class ArrayState:
    """An array, as Slurm shows it.

    Args:
        alive: elements in the queue that may still do something.
        unknown: nothing is in the queue, and how it ended isn't recorded (yet): neither
            alive nor ended.
    """

    slurm_job_id: str
    elements: Mapping[int, Element] = field(default_factory=dict)
    alive: int = 0
    unknown: bool = False

    @property
    def pending(self) -> int:
        """Elements that wait for a node."""
        return self.counts().get(ElementState.PENDING.value, 0)

    @property
    def running(self) -> int:
        """Elements that run."""
        return self.counts().get(ElementState.RUNNING.value, 0)

    def lost(self) -> dict[str, int]:
        """Elements whose worker died, by error class."""
        classes = (element.state.error_class for element in self.elements.values())
        return dict(Counter(each.value for each in classes if each is not None))

    def counts(self) -> dict[str, int]:
        """Elements by state."""
        return dict(Counter(element.state.value for element in self.elements.values()))


def parse_queue(text: str) -> Elements:
    """Elements by array in lines of `QUEUE_FORMAT`."""
    found: Elements = defaultdict(dict)
    for job, numbers, (state, node, reason) in _lines(text):
        element = Element(parse_state(state), node=node, reason="" if reason == "None" else reason)
        found[job].update(dict.fromkeys(numbers, element))
    return found


def parse_records(text: str) -> Elements:
    """Elements by array in lines of `RECORD_FORMAT`."""
    found: Elements = defaultdict(dict)
    for job, numbers, (state, node, exit_code) in _lines(text):
        found[job].update(dict.fromkeys(numbers, Element(parse_state(state), exit_code, node)))
    return found


def merge(
    slurm_job_id: str, queued: Mapping[int, Element], records: Mapping[int, Element]
) -> ArrayState:
    """The array, from what both say; see the table above."""
    elements = {}
    for number in sorted({*queued, *records}):
        shown, record = queued.get(number), records.get(number)
        ended = record if record is not None and record.state.terminal else None
        if shown is None:
            elements[number] = ended or Element(ElementState.UNKNOWN)
        elif ended is not None and shown.state.terminal:
            elements[number] = replace(shown, exit_code=ended.exit_code)
        else:
            elements[number] = shown
    alive = sum(not each.state.terminal for each in queued.values())
    settled = elements and all(each.state.terminal for each in elements.values())
    return ArrayState(slurm_job_id, elements, alive, unknown=not alive and not settled)


def named(slurm_job_ids: Sequence[str]) -> str:
    """Arrays in words."""
    return f"array{'s' if len(slurm_job_ids) > 1 else ''} {', '.join(slurm_job_ids)}"


def merge_arrays(arrays: Sequence[ArrayState]) -> ArrayState:
    """Several arrays that work together as one; its elements are numbered anew."""
    if len(arrays) == 1:
        return arrays[0]
    elements = (element for array in arrays for element in array.elements.values())
    alive = sum(array.alive for array in arrays)
    return ArrayState(
        ",".join(array.slurm_job_id for array in arrays),
        dict(enumerate(elements)),
        alive,
        unknown=not alive and any(array.unknown for array in arrays),
    )


def parse_job_id(text: str) -> str | None:
    """The array's id in ``123``, ``123;cluster``, ``123_4`` or ``123_[0-7%2]``."""
    word = text.strip().split(";")[0].partition("_")[0]
    return word if word.isdigit() else None


def _lines(text: str) -> Iterator[tuple[str, list[int], tuple[str, str, str]]]:
    for line in text.splitlines():
        words = line.strip().split("|")
        numbers = _numbers(words[0])
        if len(words) != 4 or numbers is None:
            log.warning("Slurm printed a line that is not understood: %r", line)
            continue
        yield words[0].partition("_")[0], numbers, (words[1], words[2], words[3])


def _numbers(job_id: str) -> list[int] | None:
    """The elements in ``123`` (none), ``123_4`` or ``123_[0-3,7%2]`` (those that wait)."""
    job, _, elements = job_id.partition("_")
    if job.isdigit() and not elements:
        return []
    found: list[int] = []
    for part in elements.strip("[]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            return None
        found.extend(range(int(first), int(last or first) + 1))
    return found

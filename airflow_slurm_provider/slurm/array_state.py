"""The state of an array, merged from the lines of ``squeue`` and ``sacct``.

The queue knows what is alive. The accounting knows, later, how elements ended:

| squeue      | sacct       | the element is                                                |
| ----------- | ----------- | ------------------------------------------------------------- |
| any state   | any         | in the state of the queue; its exit code comes from sacct     |
| absent      | terminal    | ended, as recorded by sacct                                   |
| absent      | else        | UNKNOWN: gone from the queue, its end is not yet recorded     |

For some seconds sacct shows a new array as one plain job with the number of its last element.
Such lines say nothing about elements and are skipped (seen on 22.05).

An array is identified by its id *and* its name (`ArrayKey`). Slurm starts again at its first id
when ``slurmctld`` has lost its state, and people may give a job any name. The names of our arrays
hold a token that is drawn once. So each query asks for the name beside the id, and
`split_by_array` drops every line with another name: it belongs to somebody else. The submit
time orders the starts of a requeued element, within one id and name. Times of two machines are
never compared.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

from airflow_slurm_provider.slurm.states import ElementState, parse_state

log = logging.getLogger(__name__)

#: The fields that `parse_queue` expects.
QUEUE_FIELDS = ("%i", "%T", "%N", "%r")
#: Fields that are requested behind the others; `split_by_array` removes them.
QUEUE_IDENTITY = ("%V", "%j")
RECORD_IDENTITY = ("Submit", "JobName")


@dataclass(frozen=True, slots=True, order=True)
class ArrayKey:
    """The identity of an array."""

    slurm_job_id: str  #: Slurm's number; where it is empty, the name is looked up
    name: str  #: the Slurm job's name, which holds the submission's token


@dataclass(frozen=True, slots=True)
class Element:
    """One element of an array, as Slurm shows it."""

    state: ElementState
    exit_code: str = ""  #: ``<code>:<signal>``; empty where Slurm doesn't give one
    node: str = ""
    reason: str = ""  #: Slurm's reason why it waits


#: Elements by array and number.
Elements = dict[str, dict[int, Element]]


@dataclass(frozen=True, slots=True)
class ArrayState:
    """An array, as Slurm shows it."""

    slurm_job_id: str
    elements: Mapping[int, Element] = field(default_factory=dict)
    alive: int = 0  #: number of elements in the queue that may still do something
    #: Nothing is in the queue, and the end isn't recorded (yet): the array is neither alive nor
    #: ended
    unknown: bool = False

    @property
    def pending(self) -> int:
        """Elements that wait for a node."""
        return self.counts().get(ElementState.PENDING.value, 0)

    @property
    def running(self) -> int:
        """Elements that run."""
        return self.counts().get(ElementState.RUNNING.value, 0)

    @property
    def ended(self) -> bool:
        """Whether all elements have ended, and Slurm has recorded how."""
        return not self.unknown and not self.alive

    @property
    def failed(self) -> list[int]:
        """The elements that did not complete."""
        elements = sorted(self.elements.items())
        return [number for number, item in elements if item.state is not ElementState.COMPLETED]

    def failure(self) -> str:
        """Why the array failed; empty where every element completed."""
        failed, total = self.failed, len(self.elements)
        if total and not failed:
            return ""
        counts = Counter(self.elements[number].state.value for number in failed)
        states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        exit_code = self.elements[failed[0]].exit_code if failed else ""
        how = f"; element {failed[0]} exited with {exit_code}" if exit_code else ""
        found = f"{len(failed)} of {total} elements failed ({states or 'no record'}){how}"
        return f"array {self.slurm_job_id}: {found}"

    def lost(self) -> dict[str, int]:
        """Elements whose worker died, by error class."""
        classes = (element.state.error_class for element in self.elements.values())
        return dict(Counter(found.value for found in classes if found is not None))

    def counts(self) -> dict[str, int]:
        """Elements by state."""
        return dict(Counter(element.state.value for element in self.elements.values()))


def split_by_array(text: str, arrays: Iterable[ArrayKey], fields: int) -> dict[ArrayKey, str]:
    """The lines of each array, by submit time; lines of other jobs are dropped.

    A line has so many `fields`, the job's id first, then submit time and name, separated by ``|``.
    The lines of steps follow that of their element and have the name of the step.
    """
    wanted = {(array.slurm_job_id, array.name): array for array in arrays}
    #: By array, the starts of its elements: the submit time, the element's line and its steps'
    found: dict[ArrayKey, list[tuple[str, list[str]]]] = {array: [] for array in wanted.values()}
    current: tuple[str, list[str]] = "", []
    for line in text.splitlines():
        # The name is last: only a name may hold a separator.
        words = line.strip().split("|", fields + 1)
        if len(words) < fields + 2:
            log.warning("Slurm printed a line that is not understood: %r", line)
            continue
        job, _, step = words[0].partition(".")
        if not step:
            current = job, []
            key = wanted.get((job.partition("_")[0], words[-1]))
            if key is not None:
                found[key].append((words[-2], current[1]))
        if job == current[0]:
            current[1].append("|".join(words[:fields]))
    return {
        key: "\n".join(line for _, lines in sorted(starts, key=itemgetter(0)) for line in lines)
        for key, starts in found.items()
    }


def job_lines(
    text: str, fields: Sequence[str]
) -> Iterator[tuple[str, str, list[int], Mapping[str, str]]]:
    """Job, step (empty for an element), elements and values of each line, as `fields` name them.

    The first field is the job's id; a value that was not requested is empty.
    """
    for line in text.splitlines():
        words = line.strip().split("|")
        job, _, step = words[0].partition(".")
        numbers = element_numbers(job)
        if len(words) != len(fields) or numbers is None:
            log.warning("Slurm printed a line that is not understood: %r", line)
        else:
            yield job, step, numbers, defaultdict(str, zip(fields, words, strict=True))


def parse_queue(text: str) -> Elements:
    """Elements by array in lines of `QUEUE_FIELDS`."""
    found: Elements = defaultdict(dict)
    for job, _, numbers, values in job_lines(text, QUEUE_FIELDS):
        reason = "" if values["%r"] == "None" else values["%r"]
        element = Element(parse_state(values["%T"]), node=values["%N"], reason=reason)
        found[job.partition("_")[0]].update(dict.fromkeys(numbers, element))
    return found


def merge(
    slurm_job_id: str, queued: Mapping[int, Element], records: Mapping[int, Element]
) -> ArrayState:
    """The array, from queue and accounting; see the table above."""
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
    alive = sum(not element.state.terminal for element in queued.values())
    settled = elements and all(element.state.terminal for element in elements.values())
    return ArrayState(slurm_job_id, elements, alive, unknown=not alive and not settled)


def named(slurm_job_ids: Sequence[str]) -> str:
    """The arrays for a message: ``arrays 12, 13``."""
    if not slurm_job_ids:
        return "no array"
    return f"array{'s' if len(slurm_job_ids) > 1 else ''} {', '.join(slurm_job_ids)}"


def merge_arrays(arrays: Sequence[ArrayState]) -> ArrayState:
    """Several arrays as one; its elements get new numbers."""
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


def element_numbers(job_id: str) -> list[int] | None:
    """The elements in ``123`` (none), ``123_4`` or ``123_[0-3,7%2]``; None for other text."""
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

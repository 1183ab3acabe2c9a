"""What Slurm's text says about an array: ``squeue``'s and ``sacct``'s lines, merged.

The queue is right about what is alive, the accounting about how things ended, late:

| squeue      | sacct       | the element is                                            |
| ----------- | ----------- | --------------------------------------------------------- |
| any state   | any         | what the queue says; its exit code comes from sacct       |
| not there   | terminal    | ended, as sacct says                                      |
| not there   | else        | UNKNOWN: gone from the queue, its end not yet recorded    |

For some seconds sacct shows a new array as one plain job, whose number is that of its
last element: such lines say nothing about elements and are passed over (seen on 22.05).

An array is known by its id *and* its name (`ArrayKey`). Slurm begins again at its first id
when ``slurmctld`` has lost its state, and people may give a job any name; the names of our
arrays hold a token that is drawn once. So each question asks for the name beside the id, and
`split_by_array` drops every line of another name: what does not match is somebody else's.
The submit time tells only records of one id and one name apart, a requeued element's starts:
the later one is the later start. Times of two machines are never compared.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from airflow_slurm_provider.slurm.states import ElementState, parse_state

log = logging.getLogger(__name__)

#: The fields that the parsers below expect.
QUEUE_FORMAT = "%i|%T|%N|%r"
RECORD_FORMAT = "JobID,State,NodeList,ExitCode"
#: What is asked for behind them, and taken off by `split_by_array`.
QUEUE_IDENTITY = "|%V|%j"
RECORD_IDENTITY = ",Submit,JobName"


@dataclass(frozen=True, slots=True, order=True)
class ArrayKey:
    """Which array is meant.

    Args:
        slurm_job_id: Slurm's number; empty where it is not known, so that the name is
            looked up.
        name: the Slurm job's name, which holds the submission's token.
    """

    slurm_job_id: str
    name: str


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


def split_by_array(text: str, arrays: Iterable[ArrayKey], fields: int) -> dict[ArrayKey, str]:
    """Each array's own lines, by submit time; lines of other jobs are dropped.

    Args:
        text: lines of so many fields, then submit time and name, separated by ``|``. Lines
            of steps follow that of their element: their name is the step's.
        arrays: the arrays, with their ids.
        fields: how many; the first one is the job's id.
    """
    wanted = {(each.slurm_job_id, each.name): each for each in arrays}
    found: dict[ArrayKey, list[_Start]] = {each: [] for each in wanted.values()}
    start = _Start("", "")
    for line in text.splitlines():
        # The name stands last: it alone may hold a separator.
        words = line.strip().split("|", fields + 1)
        if len(words) < fields + 2:
            log.warning("Slurm printed a line that is not understood: %r", line)
            continue
        job, _, step = words[0].partition(".")
        if not step:
            start = _Start(job, words[-2])
            key = wanted.get((job.partition("_")[0], words[-1]))
            if key is not None:
                found[key].append(start)
        if job == start.job:
            start.lines.append("|".join(words[:fields]))
    return {key: _lines_by_time(starts) for key, starts in found.items()}


@dataclass(frozen=True, slots=True)
class _Start:
    """One start of an element, and what Slurm says of it and its steps."""

    job: str
    submitted: str
    lines: list[str] = field(default_factory=list)


def _lines_by_time(starts: Iterable[_Start]) -> str:
    by_time = sorted(starts, key=lambda each: each.submitted)
    return "\n".join(line for start in by_time for line in start.lines)


def parse_queue(text: str) -> Elements:
    """Elements by array in lines of `QUEUE_FORMAT`."""
    found: Elements = defaultdict(dict)
    for job, numbers, (state, node, reason) in _lines(text):
        element = Element(parse_state(state), node=node, reason="" if reason == "None" else reason)
        found[job].update(dict.fromkeys(numbers, element))
    return found


def parse_records(text: str) -> Elements:
    """Elements by array in lines of `RECORD_FORMAT`.

    An array that was cancelled before Slurm had split it up has one record, without elements: it
    is shown as element 0. Other records of that kind are of a moment.
    """
    found: Elements = defaultdict(dict)
    for job, numbers, (state, node, exit_code) in _lines(text):
        element = Element(parse_state(state), exit_code, node)
        if not numbers and element.state is ElementState.CANCELLED:
            numbers = [0]
        found[job].update(dict.fromkeys(numbers, element))
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
    if not slurm_job_ids:
        return "no array"
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

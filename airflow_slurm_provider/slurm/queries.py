"""What Slurm knows about arrays: all queries to ``squeue`` and ``sacct``.

Output is parsed from ``-o`` and ``-P`` text: the JSON forms change between versions. Each method
costs one or two commands for up to 500 arrays. An array is identified by its id and its name: see
`array_state`.
"""

from __future__ import annotations

import logging
import shlex
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from airflow_slurm_provider.slurm import submission
from airflow_slurm_provider.slurm.accounting import (
    RECORD_FIELDS,
    STATE_FIELDS,
    JobRecord,
    elements_of,
    parse_records,
)
from airflow_slurm_provider.slurm.array_state import (
    QUEUE_FIELDS,
    QUEUE_IDENTITY,
    RECORD_IDENTITY,
    ArrayKey,
    ArrayState,
    merge,
    merge_arrays,
    parse_job_id,
    parse_queue,
    split_by_array,
)
from airflow_slurm_provider.slurm.remote_folder import check_name
from airflow_slurm_provider.slurm.transport import Transport, error_text, keeps_no_accounting
from slurm_worker.errors import ServiceError

log = logging.getLogger(__name__)

_T = TypeVar("_T")
#: The most array ids, and names, in one command line.
_MOST_IDS, MOST_NAMES = 500, 100
#: Seconds after which an array counts as ended although its end was never recorded.
VANISHED_AFTER_S = 120.0
#: The account, for a shell.
_ME = '"$(id -un)"'


class JobQueries:
    """Queries for the jobs of one account; safe to share between threads.

    All raise `ServiceError` if Slurm doesn't answer. That does not mean that there is no array.
    """

    def __init__(self, transport: Transport, clock: Callable[[], float]) -> None:
        self._transport = transport
        self._clock = clock
        self._unknown_since: dict[ArrayKey, float] = {}

    def find(self, names: Collection[str]) -> dict[str, str]:
        """The ids of arrays by name, queued or accounted; a name that Slurm lacks is absent."""
        found: dict[str, str] = {}
        for name in names:
            check_name(name, "job")
        for some in pieces(sorted(names), MOST_NAMES):
            known = _ids_by_name(self._queue(f"-t all --name={','.join(some)}", "%F|%j"))
            missing = [name for name in some if name not in known]
            if missing:
                chosen = f"-S now-30days --name={','.join(missing)}"
                known |= _ids_by_name(self._accounting("-nXP", chosen, "JobID,JobName") or "")
            found.update({name: known[name] for name in some if name in known})
        return found

    def names(self, slurm_job_ids: Collection[str], prefix: str) -> dict[str, str]:
        """The names of arrays by id, where they begin with `prefix`.

        Slurm may have given some of the ids to other jobs since.
        """
        found: dict[str, str] = {}
        for some in pieces(sorted(slurm_job_ids, key=int), _MOST_IDS):
            ids = f"-j {','.join(some)}"
            text = self._queue(f"-t all {ids}", "%F|%j")
            text += "\n" + (self._accounting("-nXPD", ids, "JobID,JobName") or "")
            pairs = [pair for pair in _ids_and_names(text) if pair[0] in some]
            found.update({job: name for job, name in pairs if name.startswith(prefix)})
        return found

    def alive(self, names: Collection[str], *, completing: bool = False) -> set[ArrayKey]:
        """The arrays of these names that wait or run; or that are `completing`.

        An element that is completing only ends, unless it was put back: by a preemption, by
        ``scontrol requeue`` or with its node. Then it waits next. Slurm shows no difference.
        """
        states = submission.WAITS_OR_RUNS + (",COMPLETING" if completing else "")
        found = set()
        for some in pieces(sorted(names), MOST_NAMES):
            chosen = f"-t {states} --name={','.join(some)}"
            pairs = _ids_and_names(self._queue(chosen, "%F|%j"))
            found |= {ArrayKey(job, name) for job, name in pairs if name in some}
        return found

    def array(self, array: ArrayKey) -> ArrayState:
        """The state of one array; see `arrays`."""
        return self.arrays([array])[array]

    def arrays(self, arrays: Collection[ArrayKey]) -> dict[ArrayKey, ArrayState]:
        """The states of arrays: one ``squeue`` and one ``sacct`` for up to 500 of them.

        An array whose id is absent is looked up first: see `find`.
        """
        ids = self._with_ids(arrays)
        states: dict[ArrayKey, ArrayState] = {}
        for some in pieces(sorted(set(ids.values())), _MOST_IDS):
            states.update(self._states(some))
        return {
            array: states[ids[array]] if array in ids else ArrayState(array.name, unknown=True)
            for array in arrays
        }

    def together(self, arrays: Sequence[ArrayKey]) -> ArrayState:
        """Several arrays as one; as many commands as `arrays` runs."""
        states = self.arrays(arrays)
        return merge_arrays([states[array] for array in arrays])

    def records(self, arrays: Collection[ArrayKey]) -> list[JobRecord]:
        """The starts of the arrays' elements, requeued ones included; one ``sacct``.

        Empty where the site keeps no accounting. Elements that still wait are left out.
        """
        found: list[JobRecord] = []
        for some in pieces(sorted(set(self._with_ids(arrays).values())), _MOST_IDS):
            lines = self._record_lines("-nPD", some, RECORD_FIELDS) or {}
            for text in lines.values():
                found += [record for record in parse_records(text) if record.started]
        return found

    def _states(self, arrays: Sequence[ArrayKey]) -> dict[ArrayKey, ArrayState]:
        text = self._queue(f"-r -t all -j {_ids(arrays)}", "|".join(QUEUE_FIELDS + QUEUE_IDENTITY))
        queue = split_by_array(text, arrays, len(QUEUE_FIELDS))
        try:
            # All records of an id: the latest one may be of a later job with the same number.
            lines = self._record_lines("-nXPD", arrays, STATE_FIELDS)
        except ServiceError as error:
            if not any(queue.values()):
                raise
            log.warning("%s; how elements ended is not shown", error)
            lines = {}
        found = {}
        for key in arrays:
            job = key.slurm_job_id
            queued = parse_queue(queue[key]).get(job, {})
            records = parse_records((lines or {}).get(key, ""), STATE_FIELDS)
            array = merge(job, queued, elements_of(records).get(job, {}))
            if lines is None and not array.alive:
                # Without accounting, the queue alone shows that the array has ended.
                found[key] = ArrayState(job, queued)
            else:
                found[key] = self._settle(key, array)
        return found

    def _settle(self, key: ArrayKey, array: ArrayState) -> ArrayState:
        """The array, as ended where it has been unknown for long."""
        if not array.unknown:
            self._unknown_since.pop(key, None)
            return array
        since = self._unknown_since.setdefault(key, self._clock())
        if self._clock() - since < VANISHED_AFTER_S:
            return array
        log.warning("array %s left the queue, and its end was never recorded", array.slurm_job_id)
        return ArrayState(array.slurm_job_id, array.elements)

    def _with_ids(self, arrays: Collection[ArrayKey]) -> dict[ArrayKey, ArrayKey]:
        """Each array with its id; absent where Slurm does not know its name."""
        found = self.find({array.name for array in arrays if not array.slurm_job_id})
        ids = ((array, array.slurm_job_id or found.get(array.name)) for array in arrays)
        return {array: ArrayKey(job, array.name) for array, job in ids if job}

    def _record_lines(
        self, flags: str, arrays: Sequence[ArrayKey], fields: tuple[str, ...]
    ) -> dict[ArrayKey, str] | None:
        """Lines of `fields` by array; None where there is no accounting."""
        text = self._accounting(flags, f"-j {_ids(arrays)}", ",".join(fields + RECORD_IDENTITY))
        return None if text is None else split_by_array(text, arrays, len(fields))

    def _queue(self, chosen: str, fields: str) -> str:
        """The output of ``squeue`` for the account's own jobs."""
        result = self._transport.run(f"squeue -h -u {_ME} {chosen} -o {shlex.quote(fields)}")
        if result.code and "invalid job id" not in result.stderr.lower():
            raise ServiceError(f"cluster: squeue failed: {error_text(result)}", "try again")
        return "" if result.code else result.stdout

    def _accounting(self, flags: str, chosen: str, fields: str) -> str | None:
        """The output of ``sacct`` for the account's own jobs; None without accounting."""
        result = self._transport.run(f"sacct {flags} -u {_ME} {chosen} -o {fields}")
        if result.code == 0:
            return result.stdout
        if keeps_no_accounting(result):
            return None
        raise ServiceError(f"cluster: sacct failed: {error_text(result)}", "try again")


def pieces(values: Sequence[_T], most: int) -> Iterator[Sequence[_T]]:
    """The values in pieces of at most `most`."""
    return (values[first : first + most] for first in range(0, len(values), most))


def _ids(arrays: Iterable[ArrayKey]) -> str:
    return ",".join(sorted({array.slurm_job_id for array in arrays}, key=int))


def _ids_and_names(text: str) -> Iterator[tuple[str, str]]:
    """The id and the name in each line of both."""
    for line in text.splitlines():
        word, _, name = line.strip().partition("|")
        if job := parse_job_id(word):
            yield job, name


def _ids_by_name(text: str) -> dict[str, str]:
    """The lowest id of each name, in lines of id and name."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for job, name in _ids_and_names(text):
        found[name].add(job)
    return {name: min(jobs, key=int) for name, jobs in found.items()}

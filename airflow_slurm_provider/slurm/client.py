"""Slurm by its commands, over any transport; text in, plain objects out.

Submitting exactly once is decided on the login node: see `submission`. Output is parsed
from ``-o`` and ``-P`` text: the JSON forms change between versions. Each verb costs one
or two commands; `submit` two, and more only where another caller is at it; `cancel` asks
again until Slurm has carried it out. An array is known by its id and its name: see `arrays`.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shlex
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from airflow_slurm_provider.slurm import submission
from airflow_slurm_provider.slurm.accounting import ENDING_FORMAT, JobRecord, parse_endings
from airflow_slurm_provider.slurm.array_state import (
    QUEUE_FORMAT,
    QUEUE_IDENTITY,
    RECORD_FORMAT,
    RECORD_IDENTITY,
    ArrayKey,
    ArrayState,
    Element,
    merge,
    merge_arrays,
    named,
    parse_job_id,
    parse_queue,
    parse_records,
    split_by_array,
)
from airflow_slurm_provider.slurm.cluster_info import Survey
from airflow_slurm_provider.slurm.complaints import error_text, keeps_no_accounting, unsafe_folder
from airflow_slurm_provider.slurm.submission import SubmitExit
from airflow_slurm_provider.slurm.transport import CommandResult, Transport
from airflow_slurm_provider.slurm.usage import USAGE_FORMAT, Usage, parse_usage
from slurm_worker.errors import ServiceError, UserError

__all__ = ["ArrayKey", "ArrayState", "Element", "SlurmClient"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_LONG_S = 120.0
_FIRST_POLL_S, _LONGEST_POLL_S = 0.5, 5.0
_UNSURE_S = 15.0
_VANISHED_AFTER_S = 120.0
#: How often another caller's script may have been submitted in place of ours.
_OTHERS_SCRIPTS = 3
#: More lines than a batch script has.
_ALL_LINES = "100000"
#: Array ids, and names, in one command line.
_MOST_IDS, _MOST_NAMES = 500, 100
#: How long `cancel` asks again.
_CANCEL_S = 30.0

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
#: Refusals that another time may cure.
_TEMPORARY = ("temporarily", "try again", "queue limit")
#: Refusals for the number of jobs that an account, a user or a QOS may have in the queue.
_SUBMIT_LIMIT = re.compile(r"(max|grp)submitjob", re.IGNORECASE)
_MAX_ARRAY_SIZE = re.compile(r"^MaxArraySize\s*=\s*(\d+)", re.MULTILINE)
_DEFAULT_ARRAY_SIZE = 1001
#: The account, for a shell.
_ME = '"$(id -un)"'


class SubmitLimitError(ServiceError):
    """The account, user or QOS may not have so many jobs in the queue now."""


class SubmitRefusedError(UserError):
    """Slurm refuses the script's options, and has no array of this name from any caller."""


class SubmissionCancelledError(UserError):
    """The submission was cancelled, perhaps by somebody else, before Slurm had the array."""


class SlurmClient:
    """The commands of one cluster, as one user; safe to share between threads.

    Args:
        transport: runs the commands.
        remote_dir: the project's folder on the login node, relative to the home folder
            unless absolute; must lie on a file system that the nodes share.
        clock: seconds, for deadlines.
        sleep: waits, while another caller submits the same.
    """

    def __init__(
        self,
        transport: Transport,
        remote_dir: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._transport = transport
        self._remote_dir = remote_dir.removeprefix("~/")
        self._clock = clock
        self._sleep = sleep
        self._base = ""
        self._max_array_size = 0
        self._unknown_since: dict[ArrayKey, float] = {}

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def survey(self) -> Survey:
        """What looks at the cluster itself, over the same connection."""
        return Survey(self._transport, self._remote_dir)

    def version(self) -> str:
        """Slurm's version, such as ``slurm-wlm 22.05.8``.

        Raises:
            UserError: if there is no Slurm on the login node's PATH.
        """
        result = self._transport.run("sbatch --version")
        if result.code:
            raise UserError(
                f"cluster: sbatch does not run on the login node: {error_text(result)}; make it "
                "available to non-interactive shells"
            )
        return result.stdout.strip()

    def max_array_size(self) -> int:
        """How many elements one array may have; Slurm's default where it doesn't say."""
        if not self._max_array_size:
            result = self._transport.run("scontrol show config")
            match = _MAX_ARRAY_SIZE.search(result.stdout)
            self._max_array_size = int(match.group(1)) if match else _DEFAULT_ARRAY_SIZE
        return max(1, self._max_array_size)

    def put_file(self, name: str, data: bytes) -> str:
        """Put a file into `remote_dir`; return its path.

        Skipped where a file of this name and SHA-256 is there; a partial upload is never visible.

        Raises:
            UserError: if another user can change `remote_dir`.
            ServiceError: if the cluster can't be reached.
        """
        _check_plain(name, "file")
        base, size = self._base_folder(), str(len(data))
        digest = hashlib.sha256(data).hexdigest()
        if self._run(submission.HAS_FILE, base, name, digest).code:
            self._must("upload", submission.PUT_FILE, base, name, size, _token(), stdin=data)
        return f"{base}/{name}"

    def put_secret(self, folder: str, name: str, data: bytes) -> str:
        """Put a file that only the account can read, in place of one of this name; its path.

        Args:
            folder: that of the job's submissions.
            name: the file's name.
            data: its content, which goes through standard input alone.

        Raises:
            ServiceError: if the cluster can't be reached.
        """
        _check_plain(folder, "folder")
        _check_plain(name, "file")
        place, size = f"{self._base_folder()}/jobs/{folder}", str(len(data))
        self._must(
            f"upload of {name}", submission.PUT_FILE, place, name, size, _token(), stdin=data
        )
        return f"{place}/{name}"

    def submit(self, name: str, script: str, folder: str) -> str:
        """Submit `script` under `name` exactly once; return the array's job id.

        Called again with the same name, after whatever, it returns the same array.

        Args:
            name: the Slurm job's name, which holds the submission's token.
            script: the batch script; it must set this job name.
            folder: groups submissions in `remote_dir`, such as the backfill's id.

        Raises:
            SubmitRefusedError: if Slurm refuses the script's options: there is no array then.
            SubmissionCancelledError: if `withdraw` was called first: there is none then either.
            UserError: if the login is refused; an earlier call may have submitted it.
            ServiceError: if it can't be known now; calling again goes on.
        """
        _check_plain(name, "job")
        _check_plain(folder, "folder")
        script = submission.guarded(script)
        place = f"{self._base_folder()}/jobs/{folder}/{name}"
        for _ in range(_OTHERS_SCRIPTS):
            try:
                return self._put_and_submit(place, name, script)
            except SubmitRefusedError:
                # Another caller of this name may have put other options in place of ours
                # before sbatch read them: then it is those that Slurm has refused.
                if not self._is_anothers(name, folder, script):
                    raise
        return self._put_and_submit(place, name, script)

    def _is_anothers(self, name: str, folder: str, script: str) -> bool:
        try:
            return self.script(name, folder) != script
        except ServiceError:
            return False

    def _put_and_submit(self, place: str, name: str, script: str) -> str:
        data = script.encode()
        known = self._must(
            "upload of the batch script",
            submission.PUT_SCRIPT,
            place,
            str(len(data)),
            _token(),
            stdin=data,
        )
        return parse_job_id(known) or self._submit_in(place, name)

    def output(self, name: str, folder: str, element: int, lines: int) -> str:
        """The last lines that an element of an array wrote; empty where it wrote none.

        Args:
            name: the array's name.
            folder: that of its `submit`.
            element: its number.
            lines: at most so many.
        """
        _check_plain(name, "job")
        _check_plain(folder, "folder")
        place = f"{self._base_folder()}/jobs/{folder}/{name}"
        return self._must("tail", submission.TAIL, place, f"worker-{element}.log", str(lines))

    def script(self, name: str, folder: str) -> str:
        """The batch script of an array, as ``sbatch`` got it.

        Args:
            name: the array's name.
            folder: that of its `submit`.
        """
        _check_plain(name, "job")
        _check_plain(folder, "folder")
        place = f"{self._base_folder()}/jobs/{folder}/{name}"
        return self._must("tail", submission.TAIL, place, "script.sh", _ALL_LINES)

    def find(self, names: Collection[str]) -> dict[str, str]:
        """The ids of the arrays of these names that Slurm knows, queued or accounted.

        Args:
            names: job names; one that Slurm does not know is absent from the result.

        Raises:
            ServiceError: if Slurm doesn't answer; that is not absence.
        """
        found: dict[str, str] = {}
        for name in names:
            _check_plain(name, "job")
        for some in _pieces(sorted(names), _MOST_NAMES):
            known = _ids_by_name(self._queue(f"-t all --name={','.join(some)}", "%F|%j"))
            left = [each for each in some if each not in known]
            if left:
                asked = f"-S now-30days --name={','.join(left)}"
                known |= _ids_by_name(self._records("-nXP", asked, "JobID,JobName") or "")
            found.update({name: known[name] for name in some if name in known})
        return found

    def names(self, slurm_job_ids: Collection[str], prefix: str) -> dict[str, str]:
        """The names of arrays by their ids, as far as Slurm knows one that begins like ours.

        Args:
            slurm_job_ids: the ids, of which Slurm may have given some to others since.
            prefix: what the names begin with.

        Raises:
            ServiceError: if Slurm doesn't answer.
        """
        found: dict[str, str] = {}
        for some in _pieces(sorted(slurm_job_ids, key=int), _MOST_IDS):
            ids = f"-j {','.join(some)}"
            text = self._queue(f"-t all {ids}", "%F|%j")
            text += "\n" + (self._records("-nXPD", ids, "JobID,JobName") or "")
            for line in text.splitlines():
                word, _, name = line.strip().partition("|")
                job = parse_job_id(word)
                if job and job in some and name.startswith(prefix):
                    found[job] = name
        return found

    def withdraw(self, names: Collection[str], folder: str) -> dict[str, str]:
        """See to it that no array of these names is submitted any more, whoever is about to.

        An array that Slurm has already is left alone; `cancel` ends it.

        Args:
            names: job names, as `submit` takes them.
            folder: that of `submit`.

        Returns:
            The ids of those that there are; the others never will be.

        Raises:
            ServiceError: if the cluster can't be reached; calling again goes on.
        """
        _check_plain(folder, "folder")
        known, kept = self.find(names), {}
        place = f"{self._base_folder()}/jobs/{folder}"
        for some in _pieces(sorted(names), _MOST_NAMES):
            values = {each: known.get(each, submission.CANCELLED) for each in some}
            pairs = [word for pair in values.items() for word in pair]
            text = self._must("withdraw", submission.WITHDRAW, place, _token(), *pairs)
            lines = (line.partition("|") for line in text.splitlines())
            kept.update({name: job for name, _, word in lines if (job := parse_job_id(word))})
        return kept

    def cancel(self, arrays: Collection[ArrayKey]) -> list[ArrayKey]:
        """Cancel arrays by their names, and ask until Slurm has done it.

        Nothing else is hit, whatever job has an array's number now.

        Args:
            arrays: an id may be absent.

        Returns:
            Those that waited or ran.

        Raises:
            ServiceError: naming what still waits or runs after half a minute, or if the
                cluster can't be reached; calling again goes on.
        """
        for each in arrays:
            _check_plain(each.name, "job")
        closed = {each.name for each in arrays if not each.slurm_job_id}
        alive = self._alive({each.name for each in arrays})
        # One that was closed just now may have reached Slurm in between.
        found, targets = set(alive), {each.name for each in alive} | closed
        deadline, pause = self._clock() + _CANCEL_S, _FIRST_POLL_S
        while targets:
            result = self._run(submission.CANCEL, *sorted(targets))
            alive = self._alive(targets)
            if not alive:
                break
            found.update(alive)
            if self._clock() > deadline:
                raise ServiceError(
                    f"cluster: {named([each.slurm_job_id for each in sorted(alive)])} still waits "
                    f"or runs after scancel{f' ({error_text(result)})' if result.code else ''}; "
                    "try again"
                )
            self._sleep(pause)
            pause = min(_LONGEST_POLL_S, 2 * pause)
        return sorted(found)

    def end(self, name: str, folder: str) -> None:
        """`withdraw` and `cancel` one submission, whether or not Slurm has its array.

        Raises:
            ServiceError: as they do; calling again goes on.
        """
        self.withdraw([name], folder)
        self.cancel([ArrayKey("", name)])

    def array(self, array: ArrayKey) -> ArrayState:
        """One array's elements, as `arrays` tells them."""
        return self.arrays([array])[array]

    def arrays(self, arrays: Collection[ArrayKey]) -> dict[ArrayKey, ArrayState]:
        """Several arrays' elements: one ``squeue`` and one ``sacct`` for up to 500 of them.

        Those whose id is absent are looked up first: see `find`.

        Raises:
            ServiceError: if the queue can't be read.
        """
        ids = self._with_ids(arrays)
        seen: dict[ArrayKey, ArrayState] = {}
        for some in _pieces(sorted(set(ids.values())), _MOST_IDS):
            seen.update(self._look(some))
        return {
            each: seen[ids[each]] if each in ids else ArrayState(each.name, unknown=True)
            for each in arrays
        }

    def together(self, arrays: Sequence[ArrayKey]) -> ArrayState:
        """Several arrays as one; as many calls as `arrays` makes."""
        found = self.arrays(arrays)
        return merge_arrays([found[each] for each in arrays])

    def _look(self, arrays: Sequence[ArrayKey]) -> dict[ArrayKey, ArrayState]:
        ids = f"-j {_ids(arrays)}"
        fields = RECORD_FORMAT.count(",") + 1
        text = self._queue(f"-r -t all {ids}", QUEUE_FORMAT + QUEUE_IDENTITY)
        queue = split_by_array(text, arrays, fields)
        try:
            # All records of an id: the latest one may be of a later job of the same number.
            records = self._records("-nXPD", ids, RECORD_FORMAT + RECORD_IDENTITY)
        except ServiceError as error:
            if not any(queue.values()):
                raise
            log.warning("%s; how elements ended is not shown", error)
            records = ""
        ends = split_by_array(records or "", arrays, fields)
        found = {}
        for key in arrays:
            job = key.slurm_job_id
            queued, ended = parse_queue(queue[key]), parse_records(ends[key])
            array = merge(job, queued.get(job, {}), ended.get(job, {}))
            if records is None and not array.alive:
                # Without accounting, the queue alone says that the array has ended.
                found[key] = ArrayState(job, queued.get(job, {}))
            else:
                found[key] = self._settle(key, array)
        return found

    def endings(self, arrays: Collection[ArrayKey]) -> list[JobRecord]:
        """How each start of the arrays' elements ended, requeued ones included; one ``sacct``.

        Empty where the site keeps no accounting.

        Raises:
            ServiceError: if the accounting can't be read.
        """
        return [e for text in self._starts(arrays, ENDING_FORMAT) for e in parse_endings(text)]

    def usage(self, arrays: Collection[ArrayKey]) -> list[Usage]:
        """What each start of the arrays' elements was given and has used; one ``sacct``.

        Empty where the site keeps no accounting.

        Raises:
            ServiceError: if the accounting can't be read.
        """
        return [each for text in self._starts(arrays, USAGE_FORMAT) for each in parse_usage(text)]

    def _submit_in(self, place: str, name: str) -> str:
        deadline = self._clock() + 2 * submission.STALE_ATTEMPT_S
        pause, why = _FIRST_POLL_S, ""
        while True:
            result = self._transport.run(
                submission.from_stdin(place, name, _token()), submission.SUBMIT.encode(), _LONG_S
            )
            if result.code == SubmitExit.KNOWN and (found := parse_job_id(result.stdout)):
                return found
            if result.code == SubmitExit.REFUSED:
                raise _refusal(result)
            if result.code == SubmitExit.UNSAFE:
                raise unsafe_folder(result)
            if result.code == SubmitExit.CANCELLED:
                raise SubmissionCancelledError(
                    f"cluster: the submission of {name} was cancelled before Slurm had its array; "
                    "submit again for a new one"
                )
            if result.code not in (SubmitExit.WAIT, SubmitExit.UNSURE):
                raise _failure(result, place, name)
            if result.code == SubmitExit.UNSURE:
                why = f": {error_text(result)}"
                deadline = min(deadline, self._clock() + _UNSURE_S)
            if self._clock() > deadline:
                raise ServiceError(
                    f"cluster: it is not known yet whether Slurm took array {name}{why}; "
                    "submit again to go on: it will not be submitted twice"
                )
            self._sleep(pause)
            pause = min(_LONGEST_POLL_S, 2 * pause)

    def _with_ids(self, arrays: Collection[ArrayKey]) -> dict[ArrayKey, ArrayKey]:
        """Each array with its id; absent where Slurm does not know its name."""
        found = self.find({each.name for each in arrays if not each.slurm_job_id})
        ids = ((each, each.slurm_job_id or found.get(each.name)) for each in arrays)
        return {each: ArrayKey(job, each.name) for each, job in ids if job}

    def _alive(self, names: Collection[str]) -> set[ArrayKey]:
        """The arrays of these names that wait or run."""
        found = set()
        for some in _pieces(sorted(names), _MOST_NAMES):
            asked = f"-t {submission.WAITS_OR_RUNS} --name={','.join(some)}"
            for line in self._queue(asked, "%F|%j").splitlines():
                job, _, name = line.partition("|")
                if name in some:
                    found.add(ArrayKey(job, name))
        return found

    def _starts(self, arrays: Collection[ArrayKey], fields: str) -> Iterator[str]:
        """For each array a line of `fields` for each start of each element, and for its steps."""
        keys = sorted(set(self._with_ids(arrays).values()))
        for some in _pieces(keys, _MOST_IDS):
            asked = f"-j {_ids(some)}"
            text = self._records("-nPD", asked, fields + RECORD_IDENTITY)
            yield from split_by_array(text or "", some, fields.count(",") + 1).values()

    def _queue(self, asked: str, fields: str) -> str:
        """What ``squeue`` prints of the account's own jobs."""
        result = self._transport.run(f"squeue -h -u {_ME} {asked} -o {shlex.quote(fields)}")
        if result.code and "invalid job id" not in result.stderr.lower():
            raise ServiceError(f"cluster: squeue failed: {error_text(result)}; try again")
        return "" if result.code else result.stdout

    def _records(self, how: str, asked: str, fields: str) -> str | None:
        """What ``sacct`` prints of the account's own jobs; None where there is no accounting."""
        result = self._transport.run(f"sacct {how} -u {_ME} {asked} -o {fields}")
        if result.code == 0:
            return result.stdout
        if keeps_no_accounting(result):
            return None
        raise ServiceError(f"cluster: sacct failed: {error_text(result)}; try again")

    def _settle(self, key: ArrayKey, array: ArrayState) -> ArrayState:
        """`array`, known to have ended where it has been unknown for long."""
        if not array.unknown:
            self._unknown_since.pop(key, None)
            return array
        since = self._unknown_since.setdefault(key, self._clock())
        if self._clock() - since < _VANISHED_AFTER_S:
            return array
        job = array.slurm_job_id
        log.warning("array %s left the queue, and how it ended was never recorded", job)
        return ArrayState(job, array.elements)

    def _base_folder(self) -> str:
        if not self._base:
            made = self._must("make the remote folder", submission.MAKE_FOLDER, self._remote_dir)
            self._base = made.strip()
        return self._base

    def _run(self, program: str, *arguments: str, stdin: bytes = b"") -> CommandResult:
        return self._transport.run(submission.one_line(program, *arguments), stdin, _LONG_S)

    def _must(self, what: str, program: str, *arguments: str, stdin: bytes = b"") -> str:
        result = self._run(program, *arguments, stdin=stdin)
        if result.code == SubmitExit.UNSAFE:
            raise unsafe_folder(result)
        if result.code:
            raise ServiceError(f"cluster: {what} failed: {error_text(result)}")
        return result.stdout


def _ids(arrays: Iterable[ArrayKey]) -> str:
    return ",".join(sorted({each.slurm_job_id for each in arrays}, key=int))


def _ids_by_name(text: str) -> dict[str, str]:
    """The least id of each name, in lines of id and name."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for line in text.splitlines():
        word, _, name = line.strip().partition("|")
        if job := parse_job_id(word):
            found[name].add(job)
    return {name: min(jobs, key=int) for name, jobs in found.items()}


def _pieces(values: Sequence[_T], most: int) -> Iterator[Sequence[_T]]:
    return (values[first : first + most] for first in range(0, len(values), most))


def _refusal(result: CommandResult) -> SubmitRefusedError | ServiceError:
    message = f"slurm: sbatch refused the array: {error_text(result)}"
    if _SUBMIT_LIMIT.search(message):
        return SubmitLimitError(f"{message}; submit again when fewer jobs are in the queue")
    if any(words in message.lower() for words in _TEMPORARY):
        return ServiceError(f"{message}; submit again later")
    return SubmitRefusedError(f"{message}; correct the slurm section")


def _failure(result: CommandResult, place: str, name: str) -> ServiceError:
    if result.code == SubmitExit.UNTRACEABLE:
        return ServiceError(
            f"cluster: workers of array {name} have run, and Slurm has no record of them; write "
            f"the array's job id into {place}/id, or remove that folder to submit anew"
        )
    return ServiceError(f"cluster: submission of {name} in {place} failed: {error_text(result)}")


def _check_plain(name: str, what: str) -> None:
    if not _PLAIN.fullmatch(name):
        raise UserError(
            f"slurm: {name!r} can't name a {what}; use letters, digits, '.', '_' and '-', at most "
            "200, a letter or digit first"
        )


def _token() -> str:
    return uuid.uuid4().hex[:12]

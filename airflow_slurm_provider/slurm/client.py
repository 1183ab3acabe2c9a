"""Slurm by its commands, over any transport; text in, plain objects out.

Submitting exactly once is decided on the login node: see `submission`. Output is parsed
from ``-o`` and ``-P`` text: the JSON forms change between versions. Each verb costs one
or two commands; `submit` two, and more only where another caller is at it.
"""

from __future__ import annotations

import logging
import re
import shlex
import time
import uuid
from collections.abc import Callable, Collection, Sequence

from airflow_slurm_provider.slurm import submission
from airflow_slurm_provider.slurm.arrays import (
    QUEUE_FORMAT,
    RECORD_FORMAT,
    ArrayState,
    Element,
    merge,
    merge_arrays,
    parse_job_id,
    parse_queue,
    parse_records,
)
from airflow_slurm_provider.slurm.complaints import keeps_no_accounting, said
from airflow_slurm_provider.slurm.endings import ENDING_FORMAT, Ending, parse_endings
from airflow_slurm_provider.slurm.submission import Outcome
from airflow_slurm_provider.slurm.survey import Survey
from airflow_slurm_provider.slurm.transport import CommandResult, Transport
from airflow_slurm_provider.slurm.usage import USAGE_FORMAT, Usage, parse_usage
from slurm_worker.errors import ServiceError, UserError

__all__ = ["ArrayState", "Element", "SlurmClient"]

log = logging.getLogger(__name__)

_LONG_S = 120.0
_FIRST_POLL_S, _LONGEST_POLL_S = 0.5, 5.0
_UNSURE_S = 15.0
_VANISHED_AFTER_S = 120.0
#: How often another caller's script may have been submitted in place of ours.
_OTHERS_SCRIPTS = 3
#: More lines than a batch script has.
_ALL_LINES = "100000"
#: Array ids in one command line.
_MOST_IDS = 500

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
#: Refusals that another time may cure.
_TEMPORARY = ("temporarily", "try again", "queue limit")
#: Refusals for the number of jobs that an account, a user or a QOS may have in the queue.
_SUBMIT_LIMIT = re.compile(r"(max|grp)submitjob", re.IGNORECASE)
_MAX_ARRAY_SIZE = re.compile(r"^MaxArraySize\s*=\s*(\d+)", re.MULTILINE)
_DEFAULT_ARRAY_SIZE = 1001
#: What scancel says of an array that has ended.
_ENDED = ("invalid job id", "already completing or completed")


class SubmitLimitError(ServiceError):
    """The account, user or QOS may not have so many jobs in the queue now."""


class SubmitRefusedError(UserError):
    """Slurm refuses the script's options, and has no array of this name from any caller."""


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
        self._unknown_since: dict[str, float] = {}

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
                f"cluster: sbatch does not run on the login node: {said(result)}; make it "
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
        """Put a file, whose name holds its digest, into `remote_dir`; return its path.

        Skipped where it is there already; a partial upload is never visible.
        """
        base, size = self._base_folder(), str(len(data))
        _check_plain(name, "file")
        if self._run(submission.HAS_FILE, base, name, size).code:
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
            f"upload of {name}", submission.PUT_SECRET, place, name, size, _token(), stdin=data
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
            UserError: if the login is refused; an earlier call may have submitted it.
            ServiceError: if it can't be known now; calling again goes on.
        """
        _check_plain(name, "job")
        _check_plain(folder, "folder")
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

    def find(self, name: str) -> str | None:
        """The id of the array of this name that Slurm knows, in its queue or its accounting.

        Raises:
            ServiceError: if Slurm doesn't answer; that is not absence.
        """
        _check_plain(name, "job")
        queued = self._must("squeue", 'squeue -h -t all -u "$(id -un)" --name="$1" -o %F', name)
        if not queued.strip():
            queued = self._records("-S", "now-30days", f"--name={name}", "-o", "JobID") or ""
        found = {job for line in queued.splitlines() if (job := parse_job_id(line))}
        return min(found, key=int, default=None)

    def array(self, slurm_job_id: str) -> ArrayState:
        """The array's elements, as `arrays` tells them.

        Args:
            slurm_job_id: the array's job id, or its name.

        Raises:
            ServiceError: if the queue can't be read.
        """
        if not slurm_job_id.isdigit():
            found = self.find(slurm_job_id)
            if found is None:
                return ArrayState(slurm_job_id, unknown=True)
            slurm_job_id = found
        return self.arrays([slurm_job_id])[slurm_job_id]

    def arrays(self, slurm_job_ids: Collection[str]) -> dict[str, ArrayState]:
        """Several arrays' elements: one ``squeue`` and one ``sacct`` for up to 500 of them.

        Raises:
            ServiceError: if the queue can't be read.
        """
        found: dict[str, ArrayState] = {}
        jobs = sorted(slurm_job_ids, key=int)
        for first in range(0, len(jobs), _MOST_IDS):
            found.update(self._look(jobs[first : first + _MOST_IDS]))
        return found

    def together(self, slurm_job_ids: Sequence[str]) -> ArrayState:
        """Several arrays as one; as many calls as `arrays` makes."""
        found = self.arrays(slurm_job_ids)
        return merge_arrays([found[each] for each in slurm_job_ids])

    def _look(self, jobs: Sequence[str]) -> dict[str, ArrayState]:
        ids = ",".join(jobs)
        result = self._transport.run(
            shlex.join(["squeue", "-h", "-r", "-t", "all", "-j", ids, "-o", QUEUE_FORMAT])
        )
        if result.code and "invalid job id" not in result.stderr.lower():
            raise ServiceError(f"cluster: squeue failed: {said(result)}; try again")
        queued = parse_queue("" if result.code else result.stdout)
        try:
            records = self._records("-j", ids, "-o", RECORD_FORMAT)
        except ServiceError as error:
            if not queued:
                raise
            log.warning("%s; how elements ended is not shown", error)
            records = ""
        ended = parse_records(records or "")
        found = {}
        for job in jobs:
            array = merge(job, queued.get(job, {}), ended.get(job, {}))
            if records is None and not array.alive:
                # Without accounting, the queue alone says that the array has ended.
                found[job] = ArrayState(job, queued.get(job, {}))
            else:
                found[job] = self._settle(array)
        return found

    def endings(self, slurm_job_ids: Collection[str]) -> list[Ending]:
        """How each start of the arrays' elements ended, requeued ones included; one ``sacct``.

        Empty where the site keeps no accounting.

        Raises:
            ServiceError: if the accounting can't be read.
        """
        return parse_endings(self._starts(slurm_job_ids, ENDING_FORMAT))

    def usage(self, slurm_job_ids: Collection[str]) -> list[Usage]:
        """What each start of the arrays' elements was given and has used; one ``sacct``.

        Empty where the site keeps no accounting.

        Raises:
            ServiceError: if the accounting can't be read.
        """
        return parse_usage(self._starts(slurm_job_ids, USAGE_FORMAT))

    def cancel(self, slurm_job_id: str) -> None:
        """Cancel the array; one that has ended is none the worse."""
        result = self._transport.run(shlex.join(["scancel", slurm_job_id]))
        if result.code and not any(words in result.stderr.lower() for words in _ENDED):
            raise ServiceError(f"cluster: scancel failed: {said(result)}; try again")

    def _submit_in(self, place: str, name: str) -> str:
        deadline = self._clock() + 2 * submission.STALE_ATTEMPT_S
        pause, why = _FIRST_POLL_S, ""
        while True:
            result = self._transport.run(
                submission.from_stdin(place, name, _token()), submission.SUBMIT.encode(), _LONG_S
            )
            if result.code == Outcome.KNOWN and (found := parse_job_id(result.stdout)):
                return found
            if result.code == Outcome.REFUSED:
                raise _refusal(result)
            if result.code not in (Outcome.WAIT, Outcome.UNSURE):
                raise _failure(result, place, name)
            if result.code == Outcome.UNSURE:
                why = f": {said(result)}"
                deadline = min(deadline, self._clock() + _UNSURE_S)
            if self._clock() > deadline:
                raise ServiceError(
                    f"cluster: it is not known yet whether Slurm took array {name}{why}; "
                    "submit again to go on: it will not be submitted twice"
                )
            self._sleep(pause)
            pause = min(_LONGEST_POLL_S, 2 * pause)

    def _starts(self, slurm_job_ids: Collection[str], fields: str) -> str:
        """A line of `fields` for each start of each element, and for its steps."""
        if not slurm_job_ids:
            return ""
        ids = ",".join(sorted(slurm_job_ids, key=int))
        result = self._transport.run(shlex.join(["sacct", "-nPD", "-j", ids, "-o", fields]))
        if result.code and not keeps_no_accounting(result):
            raise ServiceError(f"cluster: sacct failed: {said(result)}; try again")
        return "" if result.code else result.stdout

    def _records(self, *arguments: str) -> str | None:
        """What ``sacct`` prints; None where the site keeps no accounting."""
        result = self._transport.run(shlex.join(["sacct", "-nXP", *arguments]))
        if result.code == 0:
            return result.stdout
        if keeps_no_accounting(result):
            return None
        raise ServiceError(f"cluster: sacct failed: {said(result)}; try again")

    def _settle(self, array: ArrayState) -> ArrayState:
        """`array`, known to have ended where it has been unknown for long."""
        job = array.slurm_job_id
        if not array.unknown:
            self._unknown_since.pop(job, None)
            return array
        since = self._unknown_since.setdefault(job, self._clock())
        if self._clock() - since < _VANISHED_AFTER_S:
            return array
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
        if result.code:
            raise ServiceError(f"cluster: {what} failed: {said(result)}")
        return result.stdout


def _refusal(result: CommandResult) -> SubmitRefusedError | ServiceError:
    message = f"slurm: sbatch refused the array: {said(result)}"
    if _SUBMIT_LIMIT.search(message):
        return SubmitLimitError(f"{message}; submit again when fewer jobs are in the queue")
    if any(words in message.lower() for words in _TEMPORARY):
        return ServiceError(f"{message}; submit again later")
    return SubmitRefusedError(f"{message}; correct the slurm section")


def _failure(result: CommandResult, place: str, name: str) -> ServiceError:
    if result.code == Outcome.UNTRACEABLE:
        return ServiceError(
            f"cluster: workers of array {name} have run, and Slurm has no record of them; write "
            f"the array's job id into {place}/id, or remove that folder to submit anew"
        )
    return ServiceError(f"cluster: submission of {name} in {place} failed: {said(result)}")


def _check_plain(name: str, what: str) -> None:
    if not _PLAIN.fullmatch(name):
        raise UserError(
            f"slurm: {name!r} can't name a {what}; use letters, digits, '.', '_' and '-', at most "
            "200, a letter or digit first"
        )


def _token() -> str:
    return uuid.uuid4().hex[:12]

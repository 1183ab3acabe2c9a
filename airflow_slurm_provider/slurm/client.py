"""Slurm by its commands, over any transport; text in, plain objects out.

Exactly-once submission is decided on the login node: see `submission`. `submit` costs two
commands, and more only while another caller submits the same. `cancel` repeats its query until
Slurm has cancelled everything. Queries are in `queries`, files in `remote_folder`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection
from contextlib import suppress

from airflow_slurm_provider.slurm import submission
from airflow_slurm_provider.slurm.array_state import ArrayKey, named, parse_job_id
from airflow_slurm_provider.slurm.cluster_info import Survey
from airflow_slurm_provider.slurm.queries import MOST_NAMES, JobQueries, pieces
from airflow_slurm_provider.slurm.remote_folder import (
    PROGRAM_TIMEOUT_S,
    RemoteFolder,
    check_name,
    new_token,
)
from airflow_slurm_provider.slurm.submission import SubmitExit
from airflow_slurm_provider.slurm.transport import (
    CommandResult,
    Transport,
    error_text,
    unsafe_folder,
)
from slurm_worker.errors import ServiceError, UserError

#: The most scripts of other callers that may have been submitted in place of ours.
_OTHER_SCRIPTS = 3

#: Seconds for which `submit` repeats while Slurm may have taken the array.
_UNSURE_S = 15.0
#: The first pause between two tries in seconds; each further one is twice as long.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0
#: Refusals that may pass with time.
_TEMPORARY = ("temporarily", "try again", "queue limit")
#: Refusals because of the number of jobs that an account, a user or a QOS may have queued.
_SUBMIT_LIMIT = re.compile(r"(max|grp)submitjob", re.IGNORECASE)
_DEFAULT_ARRAY_SIZE = 1001


class SubmitLimitError(ServiceError):
    """The account, user or QOS may not have so many jobs in the queue now."""


class SubmitRefusedError(UserError):
    """Slurm refuses the script's options, and has no array of this name from any caller."""


class SubmissionCancelledError(UserError):
    """The submission was cancelled, perhaps by somebody else, before Slurm had the array."""


class SlurmClient(JobQueries, RemoteFolder):
    """The commands of one cluster, as one user; safe to share between threads.

    All methods raise `ServiceError` if the cluster can't be reached; call again to continue.
    `cancel_s` is how many seconds `cancel` repeats while arrays wait or run.
    """

    def __init__(
        self,
        transport: Transport,
        remote_dir: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        cancel_s: float = 30.0,
    ) -> None:
        JobQueries.__init__(self, transport, clock)
        RemoteFolder.__init__(self, transport, remote_dir)
        self._sleep = sleep
        self._cancel_s = cancel_s
        self._max_array_size = 0

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def survey(self) -> Survey:
        """Queries about the cluster itself, over the same connection."""
        return Survey(self._transport, self._remote_dir)

    def version(self) -> str:
        """Slurm's version, such as ``slurm-wlm 22.05.8``.

        Raises:
            UserError: if there is no Slurm on the login node's PATH.
        """
        result = self._transport.run("sbatch --version")
        if result.code:
            raise UserError(
                f"cluster: sbatch does not run on the login node: {error_text(result)}",
                "make it available to non-interactive shells",
            )
        return result.stdout.strip()

    def max_array_size(self) -> int:
        """How many elements one array may have; Slurm's default where it is not configured."""
        if not self._max_array_size:
            configured = self.survey().settings().get("MaxArraySize", "")
            self._max_array_size = int(configured) if configured.isdigit() else _DEFAULT_ARRAY_SIZE
        return max(1, self._max_array_size)

    def submit(self, name: str, script: str, folder: str) -> str:
        """Submit `script` under `name` exactly once; return the array's job id.

        Called again with the same name, after any failure, it returns the same array. The name
        holds the submission's token, and the batch script must set it. `folder` groups submissions
        in `remote_dir`, such as those of a backfill.

        Raises:
            SubmitRefusedError: if Slurm refuses the script's options; then there is no array.
            SubmissionCancelledError: if `withdraw` was called first; then there is none either.
            UserError: if the login is refused; an earlier call may have submitted it.
            ServiceError: if the result is not known yet; call again to continue.
        """
        script = submission.guarded(script)
        place = self._place(folder, name)
        for _ in range(_OTHER_SCRIPTS):
            try:
                return self._put_and_submit(place, name, script)
            except SubmitRefusedError:
                # Another caller of this name may have replaced our options before sbatch read
                # them: then Slurm has refused the options of that caller.
                with suppress(ServiceError):
                    if self.script(name, folder) != script:
                        continue
                raise
        return self._put_and_submit(place, name, script)

    def withdraw(self, names: Collection[str], folder: str) -> dict[str, str]:
        """Make sure that no caller submits an array of these names any more.

        An array that Slurm has already is left alone; `cancel` ends it.

        Returns:
            The ids of the arrays that exist; the other names will never have one.
        """
        known, kept = self.find(names), {}
        place = self._place(folder)
        for some in pieces(sorted(names), MOST_NAMES):
            values = {name: known.get(name, submission.CANCELLED) for name in some}
            pairs = [word for pair in values.items() for word in pair]
            text = self._run_checked("withdraw", submission.WITHDRAW, place, new_token(), *pairs)
            lines = (line.partition("|") for line in text.splitlines())
            kept.update({name: job for name, _, word in lines if (job := parse_job_id(word))})
        return kept

    def cancel(self, arrays: Collection[ArrayKey]) -> list[ArrayKey]:
        """Cancel arrays by their names, also without an id, and repeat until they have ended.

        No other job is hit, also if it has the number of an array now.

        Returns:
            The arrays that waited or ran.

        Raises:
            ServiceError: naming the arrays that still wait or run at the deadline.
        """
        for array in arrays:
            check_name(array.name, "job")
        names = {array.name for array in arrays}
        found = self.alive(names)
        # Elements that are completing may be about to run again, and Slurm shows no difference. So
        # they are cancelled again until they have ended. One that was withdrawn just now may have
        # reached Slurm in between.
        ending = self.alive(names, completing=True)
        targets = {array.name for array in ending}
        targets |= {array.name for array in arrays if not array.slurm_job_id}
        deadline, pause = self._clock() + self._cancel_s, _FIRST_PAUSE_S
        while targets:
            result = self._run(submission.CANCEL, *sorted(targets))
            left = self.alive(targets, completing=True)
            found |= left - ending
            if not left:
                break
            if self._clock() > deadline:
                # Where scancel has done its work for so long, what is completing only ends.
                alive = left if result.code else self.alive(targets)
                if not alive:
                    break
                ids = named([array.slurm_job_id for array in sorted(alive)])
                error = f" ({error_text(result)})" if result.code else ""
                raise ServiceError(
                    f"cluster: workers of {ids} still wait or run after scancel{error}", "try again"
                )
            pause = self._pause(pause)
        return sorted(found)

    def end(self, name: str, folder: str) -> None:
        """`withdraw` and `cancel` one submission, whether or not Slurm has its array."""
        self.withdraw([name], folder)
        self.cancel([ArrayKey("", name)])

    def _put_and_submit(self, place: str, name: str, script: str) -> str:
        data = script.encode()
        values = (place, str(len(data)), new_token())
        known = self._run_checked(
            "upload of the batch script", submission.PUT_SCRIPT, *values, stdin=data
        )
        return parse_job_id(known) or self._submit_in(place, name)

    def _submit_in(self, place: str, name: str) -> str:
        deadline = self._clock() + 2 * submission.STALE_ATTEMPT_S
        pause, error = _FIRST_PAUSE_S, ""
        while True:
            result = self._transport.run(
                submission.from_stdin(place, name, new_token()),
                submission.SUBMIT.encode(),
                PROGRAM_TIMEOUT_S,
            )
            if result.code == SubmitExit.KNOWN and (found := parse_job_id(result.stdout)):
                return found
            if result.code not in (SubmitExit.WAIT, SubmitExit.UNSURE):
                raise _failure(result, place, name)
            if result.code == SubmitExit.UNSURE:
                error = f": {error_text(result)}"
                deadline = min(deadline, self._clock() + _UNSURE_S)
            if self._clock() > deadline:
                raise ServiceError(
                    f"cluster: it is not known yet whether Slurm took array {name}{error}",
                    "submit again to continue: it will not be submitted twice",
                )
            pause = self._pause(pause)

    def _pause(self, pause: float) -> float:
        """Wait; the next pause."""
        self._sleep(pause)
        return min(_LONGEST_PAUSE_S, 2 * pause)


def _failure(result: CommandResult, place: str, name: str) -> UserError | ServiceError:
    """The error for a `submission.SUBMIT` that will not succeed by itself."""
    if result.code == SubmitExit.REFUSED:
        return _refusal(result)
    if result.code == SubmitExit.UNSAFE:
        return unsafe_folder(result)
    if result.code == SubmitExit.CANCELLED:
        return SubmissionCancelledError(
            f"cluster: the submission of {name} was cancelled before Slurm had its array",
            "submit again for a new one",
        )
    if result.code == SubmitExit.UNTRACEABLE:
        return ServiceError(
            f"cluster: workers of array {name} have run, but Slurm has no record of them",
            f"write the array's job id into {place}/id, or remove that folder to submit again",
        )
    return ServiceError(f"cluster: submission of {name} in {place} failed: {error_text(result)}")


def _refusal(result: CommandResult) -> SubmitRefusedError | ServiceError:
    message = f"slurm: sbatch refused the array: {error_text(result)}"
    if _SUBMIT_LIMIT.search(message):
        return SubmitLimitError(message, "submit again when fewer jobs are in the queue")
    if any(words in message.lower() for words in _TEMPORARY):
        return ServiceError(message, "submit again later")
    return SubmitRefusedError(message, "correct the slurm section")

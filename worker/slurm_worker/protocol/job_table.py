"""The job's own rows: META, rounds, submissions, audit events.

The coordinator writes them and workers read them. A job's META row is created once, and its
number of shards never changes. Each method is one request unless it says otherwise.

The audit log holds what users do, and the few events of workers that are worth a row: a lease
taken from another worker, a task bisected or given up because its workers died, a rate cut after
a 429, and a stopped job. The worker whose conditional write did it records it. The SDK repeats a
write whose reply was lost with the same key, which is then refused: no event is recorded twice.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol import keys
from slurm_worker.protocol.job_rows import (
    JOB_FIELDS,
    ROUND_FIELDS,
    SUBMISSION_FIELDS,
    AuditEvent,
    JobRow,
    RoundRow,
    SubmissionRow,
)
from slurm_worker.protocol.keys import JobId, JobState, RoundState, SubmitState
from slurm_worker.protocol.ports import (
    Applied,
    Clock,
    Refused,
    Row,
    Rows,
    Statement,
    Value,
    str_of,
)
from slurm_worker.protocol.statements import jobs as job_statements

#: Keeps the order of one process's events within a millisecond.
_ORDER = itertools.count()
#: Records an event in the audit log: what was done, and its details.
RecordEvent: TypeAlias = Callable[[str, dict[str, Value]], object]


class JobTable:
    """The rows of one job besides its tasks.

    A method that changes a row raises a ServiceError if the row is missing. Those that do not
    are `stop`, `resume`, `advance_cursor`, `record_submitted` and `record_refusal`.
    """

    def __init__(self, rows: Rows, job: JobId, clock: Clock) -> None:
        self.rows = rows
        self.job = job
        self.clock = clock
        self._pk = keys.job_pk(job)

    def find(self, *, consistent: bool = True) -> JobRow | None:
        """The META row, if there is one."""
        row = self.rows.get(self._pk, keys.META, consistent=consistent)
        return None if row is None else JOB_FIELDS.read(row, job=self.job)

    def get(self) -> JobRow:
        """The META row.

        Raises:
            UserError: if there is no such job.
        """
        found = self.find()
        if found is None:
            raise UserError(
                f"job_id: there is no job {self.job!r} in this table",
                "check the spelling, check storage.table in the site file, or submit the job first",
            )
        return found

    def create(
        self,
        identity: str,
        config: str,
        shards: int,
        *,
        draft: int = 0,
        open_rounds: int = 0,
        voided: int = 0,
    ) -> JobRow:
        """Create the META row, or return the existing one (another's, or our lost reply).

        Two writes: the second enters the job in the register of jobs. The arguments are those of
        `JobRow`. The call that creates the row decides the `draft`. Only a job that is rebuilt
        has `open_rounds`, and `voided` in seconds since the epoch.
        """
        row = JobRow(
            self.job,
            JobState.OPEN if open_rounds else JobState.PLANNING,
            shards,
            identity,
            config,
            open_rounds,
            created_ms=self._ms(),
            voided=voided,
            draft=draft,
        )
        found = self._put_new(keys.META, JOB_FIELDS.write(row))
        standing = JOB_FIELDS.read(found, job=self.job)
        self.register(standing)
        return standing

    def register(self, job: JobRow) -> None:
        """Enter the job in the register of jobs; refused means that it is there."""
        # The key has the job's creation time, so writing this again changes nothing.
        self.rows.put_new({"pk": keys.JOBS_PK, "sk": keys.register_sk(job.created_ms, self.job)})

    def adopt_plan(self, identity: str, config: str, shards: int, draft: int) -> JobRow:
        """Decide the plan of a job that has none yet; return the current job.

        Refused means that another draft was first, or our own whose reply was lost.
        """
        statement = job_statements.adopt_plan(draft, identity, config, shards)
        return JOB_FIELDS.read(self._updated(keys.META, statement)[0], job=self.job)

    def set_config(self, digest: str) -> None:
        """Point new workers at another resolved configuration; repeating it does no harm."""
        self._updated(keys.META, job_statements.set_config(digest))

    def open(self, rounds: int) -> bool:
        """Tell workers that `rounds` rounds are open.

        False if they were open already, or if this call's first reply was lost.
        """
        return self._updated(keys.META, job_statements.open_job(rounds))[1]

    def begin_generation(self) -> None:
        """Make workers and status queries read every row again; repeating it only costs reads.

        The clock only separates this job's generations from those of a META row that was lost.
        """
        self._updated(keys.META, job_statements.begin_generation(int(self.clock.now())))

    def stop(self, reason: str) -> None:
        """Trip the job's breaker; refused means that the first reason stays, or no such job."""
        self._update(keys.META, job_statements.stop(reason[:400]))

    def pause(self, who: str) -> str:
        """Pause the job: no task is leased. Return who paused it: the first name stays."""
        standing, _ = self._updated(keys.META, job_statements.pause(who[:200]))
        return str_of(standing, "paused")

    def resume(self) -> None:
        """Reset the breaker and a pause; refused means that there is neither."""
        self._update(keys.META, job_statements.resume())

    def rounds(self) -> list[RoundRow]:
        """Every round, oldest first."""
        return [RoundRow.from_row(row) for row in self._rows_under(keys.ROUND_PREFIX)]

    def create_round(
        self,
        number: int,
        source: str,
        selector: Mapping[str, int] | None = None,
        *,
        tasks_back: Mapping[str, int] | None = None,
        only: str = "",
        slurm: Mapping[str, str] | None = None,
        delay_s: int = 0,
        version: str = "",
        draft: int = 0,
        appended: bool = False,
    ) -> RoundRow:
        """Create a round's row, or return the existing one, which decides what the round is."""
        row = RoundRow(
            number,
            RoundState.PLANNING,
            source,
            dict(selector or {}),
            created_ms=self._ms(),
            tasks_back=dict(tasks_back or {}),
            only=only,
            slurm=dict(slurm or {}),
            delay_s=delay_s,
            version=version,
            draft=draft,
            appended=appended,
        )
        return RoundRow.from_row(self._put_new(keys.round_sk(number), ROUND_FIELDS.write(row)))

    def adopt_draft(self, number: int, draft: int) -> RoundRow:
        """Make a draft the round's plan, if it has none; return the current round.

        Refused means that another draft was first, or our own whose reply was lost.
        """
        statement = job_statements.adopt_draft(draft)
        return RoundRow.from_row(self._updated(keys.round_sk(number), statement)[0])

    def advance_cursor(self, number: int, cursor: int) -> None:
        """Record that the round's first `cursor` task rows exist.

        Refused means that another planner of the same draft is further.
        """
        self._update(keys.round_sk(number), job_statements.advance_round_cursor(cursor))

    def open_round(self, number: int, tasks: int, items: int, retried: Mapping[str, int]) -> None:
        """Record that the round is planned; refused means that another planner has."""
        statement = job_statements.open_round(tasks, items, retried, self._ms())
        self._updated(keys.round_sk(number), statement)

    def submissions(self) -> list[SubmissionRow]:
        """Every submission, oldest first."""
        return [SubmissionRow.from_row(row) for row in self._rows_under(keys.SUBMIT_PREFIX)]

    def record_intent(
        self,
        round_no: int,
        number: int,
        workers: int,
        array_size: int,
        *,
        requested: bool = False,
        token: str = "",
    ) -> SubmissionRow:
        """Write a submission's intent before ``sbatch``, or return the existing one.

        An intent and its token are never deleted: an array that Slurm accepts under the token
        belongs to the submission. A submission that Slurm has refused is intended again, with
        these workers. The arguments are those of `SubmissionRow`; only a lost row that is written
        again has a `token`.
        """
        submission = SubmissionRow(
            round_no,
            number,
            SubmitState.INTENT,
            token or uuid.uuid4().hex[:12],
            workers,
            array_size,
            intent_ms=self._ms(),
            requested=requested,
        )
        standing = self._put_submission(submission)
        if not standing.refused:
            return standing
        statement = job_statements.renew_intent(
            standing.token, workers, array_size, self._ms(), requested=requested
        )
        # Refused means that another caller was quicker; its arrays or intent count.
        again = self._update(submission.sk, statement).row
        return standing if again is None else SubmissionRow.from_row(again)

    def record_submitted(
        self, submission: SubmissionRow, slurm_job_ids: Sequence[str]
    ) -> SubmissionRow | None:
        """Record the arrays' ids; repeating it does no harm.

        Two callers may have carried out the same intent, and one may have submitted more parts:
        each part has one array, so the longer list holds the shorter.

        Returns:
            The current submission; None where its row is missing or has another token.
        """
        known: Sequence[str] = slurm_job_ids
        while True:
            statement = job_statements.record_submitted(
                submission.token, slurm_job_ids, known, self._ms()
            )
            result = self._update(submission.sk, statement)
            if result.row is None or result.row["token"] != submission.token:
                return None
            standing = SubmissionRow.from_row(result.row)
            if len(standing.slurm_job_ids) >= len(slurm_job_ids):
                return standing
            known = standing.slurm_job_ids

    def restore_submission(self, submission: SubmissionRow) -> SubmissionRow:
        """Write the lost row of a submission that has arrays, or return the existing one."""
        intent = replace(submission, state=SubmitState.INTENT, refused=False)
        return self._put_submission(replace(intent, slurm_job_ids=(), submitted_ms=0))

    def block_submission(self, round_no: int, number: int) -> SubmissionRow:
        """Take a submission's number for no workers, or return the existing submission.

        A later intent under this number finds it blocked: see `SubmissionRow.empty`.
        """
        now, token = self._ms(), uuid.uuid4().hex[:12]
        none = SubmissionRow(round_no, number, SubmitState.SUBMITTED, token, 0, 1, (), now, now)
        return self._put_submission(replace(none, requested=True))

    def record_refusal(self, submission: SubmissionRow) -> None:
        """Record that Slurm has certainly refused the arrays of an intent.

        Refused means that Slurm has accepted another caller's array under the same token
        meanwhile: it counts.
        """
        self._update(submission.sk, job_statements.record_refusal(submission.token))

    def audit(self, actor: str, action: str, detail: dict[str, Value], *, once: str = "") -> bool:
        """Append a line to the audit log.

        With `once`, a name for what happened, only the first caller's line is appended. A
        conditional put creates a row under that name, which holds the line. A caller that finds
        the row appends that line again, in case its writer died in between. Two writes then.

        Returns:
            Whether this call was the first.
        """
        line: Row = {"actor": actor, "action": action, "detail": detail}
        mine = f"{self._ms():013}#{next(_ORDER) % 0x10000:04x}{uuid.uuid4().hex[:8]}"
        sk = mine
        if once:
            claim: Row = {"pk": self._pk, "sk": keys.event_once_sk(once), "mark": mine, **line}
            standing = self.rows.put_new(claim).row or claim
            # Our own claim, if its reply was lost, has our sort key.
            sk = str(standing["mark"])
            line = {name: standing[name] for name in line}
        self.rows.put_new({"pk": keys.event_pk(self.job), "sk": sk, **line})
        return sk == mine

    def events_once(self, prefix: str) -> Iterator[tuple[str, AuditEvent]]:
        """Lines of the audit log that were appended `once`, under names with this prefix."""
        for row in self._rows_under(keys.event_once_sk(prefix)):
            name = str(row["sk"]).removeprefix(keys.event_once_sk(""))
            yield name, AuditEvent.from_row(row, str(row["mark"]))

    def events(self, after: str = "") -> Iterator[AuditEvent]:
        """The audit log after a sort key, oldest first."""
        for row in self.rows.query(keys.event_pk(self.job), after=after):
            yield AuditEvent.from_row(row, str(row["sk"]))

    def _rows_under(self, prefix: str) -> Iterator[Row]:
        for row in self.rows.query(self._pk, after=prefix, consistent=True):
            if not str(row["sk"]).startswith(prefix):
                return
            yield row

    def _put_submission(self, submission: SubmissionRow) -> SubmissionRow:
        row = self._put_new(submission.sk, SUBMISSION_FIELDS.write(submission))
        return SubmissionRow.from_row(row)

    def _put_new(self, sk: str, attributes: Row) -> Row:
        """Create a row, or return the existing one: another's, or our own lost reply."""
        row: Row = {"pk": self._pk, "sk": sk, **attributes}
        return self.rows.put_new(row).row or row

    def _update(self, sk: str, statement: Statement) -> Applied | Refused:
        return self.rows.update(self._pk, sk, statement)

    def _updated(self, sk: str, statement: Statement) -> tuple[Row, bool]:
        """The row after a write that may have been made before, and whether this one made it."""
        result = self._update(sk, statement)
        if result.row is None:
            raise ServiceError(
                f"job_id: row {sk} of {self.job!r} is missing from the table",
                f"slurmctl doctor --repair --job {self.job} says what is left",
            )
        return result.row, isinstance(result, Applied)

    def _ms(self) -> int:
        return int(self.clock.now() * 1000)


def ignore_event(_action: str, _detail: dict[str, Value]) -> None:
    """Record nothing."""


def newest_jobs(rows: Rows, most: int) -> list[JobId]:
    """The ids of the newest jobs, the newest first; one request per page."""
    found = rows.query(keys.JOBS_PK, limit=most, backwards=True)
    return [JobId(str(row["sk"]).partition("#")[2]) for row in found]

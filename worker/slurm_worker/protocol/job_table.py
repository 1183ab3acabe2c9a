"""The job's own rows: META, rounds, submissions, events.

Written by the coordinator, read by workers. A job's META row is created once and its
shard count never changes. Requests: one each.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol import job_statements, keys
from slurm_worker.protocol.job_rows import AuditEvent, JobRow, RoundRow, SubmissionRow
from slurm_worker.protocol.keys import JobId, JobState, RoundState, SubmitState
from slurm_worker.protocol.ports import Applied, Clock, Refused, Row, Rows, Statement, Value, str_of

#: Keeps one process's events of the same millisecond in their order.
_ORDER = itertools.count()


class JobTable:
    """The rows of one job besides its tasks."""

    def __init__(self, rows: Rows, job: JobId, clock: Clock) -> None:
        self.rows = rows
        self.job = job
        self.clock = clock
        self._pk = keys.job_pk(job)

    def find(self, *, consistent: bool = True) -> JobRow | None:
        """The META row, if there is one."""
        row = self.rows.get(self._pk, keys.META, consistent=consistent)
        return None if row is None else JobRow.from_row(self.job, row)

    def get(self) -> JobRow:
        """The META row.

        Raises:
            UserError: if there is no such job.
        """
        found = self.find()
        if found is None:
            raise UserError(
                f"job_id: there is no job {self.job!r} in this table; check the spelling, "
                "the site's storage.table, or submit it first"
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
        """Create the META row, or return the one that stands (another's, or our lost reply).

        Two writes: the second enters the job in the register of jobs.

        Args:
            identity: see `JobRow`.
            config: likewise.
            shards: of its task rows.
            draft: the plan of its first round: the call that creates the row decides on it.
            open_rounds: rounds that are open at once; of a job that is rebuilt.
            voided: where a job is rebuilt, seconds since the epoch: see `JobRow`.
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
        standing = JobRow.from_row(self.job, self._put_new(keys.META, row.to_row()))
        self.register(standing)
        return standing

    def register(self, job: JobRow) -> None:
        """Enter the job in the register of jobs; refused means that it is there."""
        # The job has its one date of birth, so writing this again changes nothing.
        self.rows.put_new({"pk": keys.JOBS_PK, "sk": keys.register_sk(job.created_ms, self.job)})

    def adopt_plan(self, identity: str, config: str, shards: int, draft: int) -> JobRow:
        """Decide on the plan of a job that has none yet; return the job as it stands.

        Refused means that another's draft was first, or our own whose reply was lost.

        Raises:
            ServiceError: if the job's row is gone.
        """
        statement = job_statements.adopt_plan(draft, identity, config, shards)
        return JobRow.from_row(self.job, self._updated(keys.META, statement)[0])

    def set_config(self, digest: str) -> None:
        """Point new workers at another resolved configuration; repeating it does no harm.

        Raises:
            ServiceError: if the job's row is gone.
        """
        self._updated(keys.META, job_statements.set_config(digest))

    def open(self, rounds: int) -> bool:
        """Tell workers that `rounds` rounds are open.

        False if they were open already, or where this call's own first reply was lost.

        Raises:
            ServiceError: if the job's row is gone.
        """
        return self._updated(keys.META, job_statements.open_job(rounds))[1]

    def begin_generation(self) -> None:
        """Have everybody look at every row again; repeating it costs reads, and does no harm.

        The clock only tells this job's generations from those of a META row that was lost.

        Raises:
            ServiceError: if the job's row is gone.
        """
        self._updated(keys.META, job_statements.begin_generation(int(self.clock.now())))

    def stop(self, reason: str) -> None:
        """Trip the job's breaker; refused means that the first reason stays, or no such job."""
        self._update(keys.META, job_statements.stop(reason[:400]))

    def pause(self, who: str) -> str:
        """Have nobody lease a task; return who has paused the job: the first who has stays.

        Raises:
            ServiceError: if the job's row is gone.
        """
        standing, _ = self._updated(keys.META, job_statements.pause(who[:200]))
        return str_of(standing, "paused")

    def resume(self) -> None:
        """Reset the breaker and a pause; refused means that there is neither."""
        self._update(keys.META, job_statements.resume())

    def rounds(self) -> list[RoundRow]:
        """Every round, oldest first."""
        return [
            RoundRow.from_row(row)
            for row in self.rows.query(self._pk, after=keys.ROUND_PREFIX, consistent=True)
            if str(row["sk"]).startswith(keys.ROUND_PREFIX)
        ]

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
    ) -> RoundRow:
        """Create a round's row, or return the one that stands: that decides what the round is."""
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
        )
        return RoundRow.from_row(self._put_new(keys.round_sk(number), row.to_row()))

    def adopt_draft(self, number: int, draft: int) -> RoundRow:
        """Make a draft the round's plan, if it has none; return the round as it stands.

        Refused means that another's draft was first, or our own whose reply was lost.

        Raises:
            ServiceError: if the round's row is gone.
        """
        statement = job_statements.adopt_draft(draft)
        return RoundRow.from_row(self._updated(keys.round_sk(number), statement)[0])

    def advance_cursor(self, number: int, cursor: int) -> None:
        """Note that the round's first `cursor` task rows exist.

        Refused means that another planner of the same draft is further: no news.
        """
        self._update(keys.round_sk(number), job_statements.advance_round_cursor(cursor))

    def open_round(self, number: int, tasks: int, items: int, retried: Mapping[str, int]) -> None:
        """The round is planned; refused means that another planner of its draft has said so.

        Raises:
            ServiceError: if the round's row is gone.
        """
        statement = job_statements.open_round(tasks, items, retried, self._ms())
        self._updated(keys.round_sk(number), statement)

    def submissions(self) -> list[SubmissionRow]:
        """Every submission, oldest first."""
        return [
            SubmissionRow.from_row(row)
            for row in self.rows.query(self._pk, after=keys.SUBMIT_PREFIX, consistent=True)
            if str(row["sk"]).startswith(keys.SUBMIT_PREFIX)
        ]

    def record_intent(
        self,
        round_no: int,
        number: int,
        workers: int,
        array_size: int,
        *,
        asked: bool = False,
        token: str = "",
    ) -> SubmissionRow:
        """Write a submission's intent before ``sbatch``, or return the one that stands.

        Its token is drawn, but where a row that was lost is written again.

        An intent stays for good, and its token with it: whatever array Slurm takes under the
        token is the submission's. One that Slurm has refused is wanted anew with these workers.
        """
        submission = SubmissionRow(
            round_no,
            number,
            SubmitState.INTENT,
            token or uuid.uuid4().hex[:12],
            workers,
            array_size,
            intent_ms=self._ms(),
            asked=asked,
        )
        standing = self._put_new(submission.sk, submission.to_row())
        if standing.get("refused"):
            # Refused means that another caller was quicker, whose arrays or intent stand then.
            statement = job_statements.renew_intent(
                str(standing["token"]), workers, array_size, self._ms(), asked=asked
            )
            again = self._update(submission.sk, statement)
            standing = again.row or standing
        return SubmissionRow.from_row(standing)

    def record_submitted(
        self, submission: SubmissionRow, slurm_job_ids: Sequence[str]
    ) -> SubmissionRow | None:
        """Note the arrays' ids; repeating it does no harm.

        Two callers may have carried the same intent out, and one may have got further with it:
        each part has one array, so the longer list holds the shorter.

        Returns:
            The submission as it stands; None where its row is gone or is another's by now.
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
        """Write the row of a submission that has arrays again, or return the one that stands."""
        return self._put_submission(
            replace(
                submission,
                state=SubmitState.INTENT,
                slurm_job_ids=(),
                submitted_ms=0,
                refused=False,
            )
        )

    def block_submission(self, round_no: int, number: int) -> SubmissionRow:
        """Take a submission's number for no workers, or return the one that stands.

        Whoever intends workers under this number finds it barred: see `SubmissionRow.empty`.
        """
        now = self._ms()
        token = uuid.uuid4().hex[:12]
        return self._put_submission(
            SubmissionRow(
                round_no, number, SubmitState.SUBMITTED, token, 0, 1, (), now, now, asked=True
            )
        )

    def record_refusal(self, submission: SubmissionRow) -> None:
        """Note that Slurm has refused the arrays of an intent, for certain.

        Refused means that another caller's array was taken under the same token meanwhile: it
        stands.
        """
        self._update(submission.sk, job_statements.record_refusal(submission.token))

    def audit(self, actor: str, action: str, detail: dict[str, Value], *, once: str = "") -> bool:
        """Append a line to the audit trail.

        With `once`, a name for what happened, only the first of all who say so appends it: a
        row under that name is created by a conditional put and holds the line; whoever finds
        it standing appends that line, in case its writer died in between. Two writes then.

        Returns:
            Whether this call was the first.
        """
        line: Row = {"actor": actor, "action": action, "detail": detail}
        mine = f"{self._ms():013}#{next(_ORDER) % 0x10000:04x}{uuid.uuid4().hex[:8]}"
        mark = mine
        if once:
            claim: Row = {"pk": self._pk, "sk": keys.event_once_sk(once), "mark": mine, **line}
            standing = self.rows.put_new(claim).row or claim
            # Our own claim, where its reply was lost, bears our mark.
            mark = str(standing["mark"])
            line = {name: standing[name] for name in line}
        self.rows.put_new({"pk": keys.event_pk(self.job), "sk": mark, **line})
        return mark == mine

    def events_once(self, prefix: str) -> Iterator[tuple[str, AuditEvent]]:
        """Lines of the audit trail that were appended `once` under names with this prefix."""
        start = keys.event_once_sk(prefix)
        for row in self.rows.query(self._pk, after=start, consistent=True):
            if not str(row["sk"]).startswith(start):
                return
            yield (
                str(row["sk"]).removeprefix(keys.event_once_sk("")),
                AuditEvent.from_row(row, str(row["mark"])),
            )

    def events(self, after: str = "") -> Iterator[AuditEvent]:
        """The audit trail past a mark, oldest first."""
        for row in self.rows.query(keys.event_pk(self.job), after=after):
            yield AuditEvent.from_row(row, str(row["sk"]))

    def _put_submission(self, submission: SubmissionRow) -> SubmissionRow:
        return SubmissionRow.from_row(self._put_new(submission.sk, submission.to_row()))

    def _put_new(self, sk: str, attributes: Row) -> Row:
        """Create a row, or return the one that stands: another's, or our own lost reply."""
        row: Row = {"pk": self._pk, "sk": sk, **attributes}
        return self.rows.put_new(row).row or row

    def _update(self, sk: str, statement: Statement) -> Applied | Refused:
        return self.rows.update(self._pk, sk, statement)

    def _updated(self, sk: str, statement: Statement) -> tuple[Row, bool]:
        """The row after a write that may have been made before, and whether this one made it."""
        result = self._update(sk, statement)
        if result.row is None:
            raise ServiceError(
                f"job_id: row {sk} of {self.job!r} is missing from the table; "
                f"slurmctl doctor --repair --job {self.job} says what is left"
            )
        return result.row, isinstance(result, Applied)

    def _ms(self) -> int:
        return int(self.clock.now() * 1000)


def newest_jobs(rows: Rows, most: int) -> list[JobId]:
    """The ids of the jobs that were created last, the newest first; one request per page."""
    found = rows.query(keys.JOBS_PK, limit=most, backwards=True)
    return [JobId(str(row["sk"]).partition("#")[2]) for row in found]

"""The job's own rows: META, rounds, submissions, events.

Written by the coordinator, read by workers. A job's META row is created once and its
shard count never changes. Requests: one each.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from slurm_worker.errors import ServiceError, UserError
from slurm_worker.protocol import expressions, keys
from slurm_worker.protocol.keys import JobId, JobState, RoundState, SubmitState
from slurm_worker.protocol.ports import Applied, Clock, Refused, Row, Rows, Value, int_of

#: Keeps one process's events of the same millisecond in their order.
_ORDER = itertools.count()
#: Of a job; a sort key has three digits for them.
_MOST_ROUNDS = 1_000


@dataclass(frozen=True, slots=True)
class JobRow:
    """The META row.

    Args:
        identity: digest of what must not change between two submits of one job id.
        config: digest of the resolved configuration that new workers get.
        rounds: rounds that are open for work.
        stop: why the job's breaker is tripped; empty where it isn't.
        paused: who has paused the job; empty where it isn't.
        voided: rises whenever what anybody knows of old rows becomes void; 0 at first.
        draft: the plan of its first round, decided when the job was created; 0 where an earlier
            release has created it.
    """

    job: JobId
    state: JobState
    shards: int
    identity: str
    config: str
    rounds: int
    stop: str
    created_ms: int
    paused: str = ""
    voided: int = 0
    draft: int = 0

    @property
    def generation(self) -> int:
        """Rises when rows that were in an end state may have come back: see `generations`."""
        return self.voided * _MOST_ROUNDS + self.rounds

    @property
    def rows_since(self) -> str:
        """Which job of this name, and since when what is known of its done rows holds."""
        return f"{self.created_ms}-{self.voided}"


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One batch of tasks planned together.

    Args:
        selector: of a retry: by error class, how many retry rounds its failures get.
        cursor: how many of its task rows surely exist.
        retried: in a retry's round, its items by the error class they had failed with.
        tasks_back: in a retry's round, the failed tasks that it puts back, by error class.
        only: digest of the list of items that a retry was asked for; empty for all.
        slurm: options that its array has beside, or instead of, the job's.
        delay_s: seconds before its array may start.
        version: of the input that was planned; see `coordinator.inputs.version_of`.
        draft: whose segments hold its items; 0 where none is decided on, or where an earlier
            release has planned it.
    """

    number: int
    state: RoundState
    source: str
    selector: dict[str, int]
    tasks: int
    items: int
    cursor: int
    created_ms: int
    opened_ms: int
    retried: dict[str, int] = field(default_factory=dict)
    tasks_back: dict[str, int] = field(default_factory=dict)
    only: str = ""
    slurm: dict[str, str] = field(default_factory=dict)
    delay_s: int = 0
    version: str = ""
    draft: int = 0

    @property
    def classes(self) -> set[str]:
        """The error classes that a retry's round is about."""
        return {*self.retried, *self.tasks_back}


@dataclass(frozen=True, slots=True)
class SubmissionRow:
    """Workers that were submitted together; `token` is in their Slurm job names.

    Args:
        workers: how many were wanted.
        array_size: the most that one array may hold.
        slurm_job_ids: the arrays, several where one may not hold all workers.
        asked: somebody asked for these, beside those that the round gets by itself.
        refused: Slurm has refused the arrays, and had none of this token then.
    """

    round_no: int
    number: int
    state: SubmitState
    token: str
    workers: int
    array_size: int
    slurm_job_ids: tuple[str, ...]
    intent_ms: int
    submitted_ms: int
    asked: bool = False
    refused: bool = False

    @property
    def label(self) -> str:
        """How logs and folders name the submission."""
        return f"{self.round_no:03}-{self.number}"

    @property
    def empty(self) -> bool:
        """Whether it stands for no workers: the job was cancelled at this point."""
        return not self.workers

    @property
    def next_number(self) -> int:
        """The number of the round's next submission: this one's, where Slurm has refused it."""
        return self.number if self.refused else self.number + 1

    def sizes(self) -> list[int]:
        """Workers of each array."""
        return array_sizes(self.workers, self.array_size)


def job_name(job_id: JobId, submission: SubmissionRow, part: int = 0) -> str:
    """The Slurm job name of a submission's array `part`, by which the array is found again."""
    return f"{job_id}.{submission.label}.{submission.token}{f'.{part}' if part else ''}"


def array_sizes(workers: int, most: int) -> list[int]:
    """The elements of each of as few arrays as hold the workers, at most so many in one."""
    whole, rest = divmod(workers, most)
    return [most] * whole + ([rest] if rest else [])


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One line of the audit trail."""

    at_ms: int
    actor: str
    action: str
    detail: dict[str, Value] = field(default_factory=dict)
    #: Where it stands in the trail; a reader goes on after it.
    mark: str = ""


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
        return None if row is None else _job_row(self.job, row)

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
            draft: the plan of its first round: whoever creates the row decides on it.
            open_rounds: rounds that are open at once; of a job that is rebuilt.
            voided: where a job is rebuilt, seconds since the epoch: see `JobRow`.
        """
        state = JobState.OPEN if open_rounds else JobState.PLANNING
        row: Row = {
            "pk": self._pk,
            "sk": keys.META,
            "state": state.value,
            "identity": identity,
            "config": config,
            "shards": shards,
            "rounds": open_rounds,
            "created": self._ms(),
            **({"draft": draft} if draft else {}),
            **({"repaired": voided} if voided else {}),
        }
        standing = _job_row(self.job, self.rows.put_new(row).row or row)
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
        result = self.rows.update(
            self._pk,
            keys.META,
            expressions.JOB_ADOPT,
            {
                "draft": draft,
                "identity": identity,
                "config": config,
                "shards": shards,
                "planning": JobState.PLANNING.value,
            },
        )
        return _job_row(self.job, self._standing(result, keys.META))

    def set_config(self, digest: str) -> None:
        """Point new workers at another resolved configuration; repeating it does no harm.

        Raises:
            ServiceError: if the job's row is gone.
        """
        result = self.rows.update(self._pk, keys.META, expressions.JOB_CONFIG, {"config": digest})
        self._standing(result, keys.META)

    def open(self, rounds: int) -> bool:
        """Tell workers that `rounds` rounds are open.

        False if they were open already, or where this call's own first reply was lost.

        Raises:
            ServiceError: if the job's row is gone.
        """
        result = self.rows.update(
            self._pk,
            keys.META,
            expressions.JOB_OPEN,
            {"open": JobState.OPEN.value, "rounds": rounds},
        )
        self._standing(result, keys.META)
        return isinstance(result, Applied)

    def begin_generation(self) -> None:
        """Have everybody look at every row again; repeating it costs reads, and does no harm.

        The clock only tells this job's generations from those of a META row that was lost.

        Raises:
            ServiceError: if the job's row is gone.
        """
        values: dict[str, Value] = {"now": int(self.clock.now()), "one": 1}
        result = self.rows.update(self._pk, keys.META, expressions.JOB_GENERATION, values)
        self._standing(result, keys.META)

    def stop(self, reason: str) -> None:
        """Trip the job's breaker; refused means that the first reason stays, or no such job."""
        self.rows.update(self._pk, keys.META, expressions.JOB_STOP, {"reason": reason[:400]})

    def pause(self, who: str) -> str:
        """Have nobody lease a task; return who has paused the job: the first who has stays.

        Raises:
            ServiceError: if the job's row is gone.
        """
        values: dict[str, Value] = {"who": who[:200]}
        result = self.rows.update(self._pk, keys.META, expressions.JOB_PAUSE, values)
        return str(self._standing(result, keys.META).get("paused") or "")

    def resume(self) -> None:
        """Reset the breaker and a pause; refused means that there is neither."""
        self.rows.update(self._pk, keys.META, expressions.JOB_RESUME, {})

    def rounds(self) -> list[RoundRow]:
        """Every round, oldest first."""
        return [
            _round_row(row)
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
        row: Row = {
            "pk": self._pk,
            "sk": keys.round_sk(number),
            "state": RoundState.PLANNING.value,
            "source": source,
            "selector": dict(selector or {}),
            "tasks_back": dict(tasks_back or {}),
            "only": only,
            "slurm": dict(slurm or {}),
            "delay": delay_s,
            "version": version,
            "cursor": 0,
            "created": self._ms(),
            **({"draft": draft} if draft else {}),
        }
        return _round_row(self.rows.put_new(row).row or row)

    def adopt(self, number: int, draft: int) -> RoundRow:
        """Make a draft the round's plan, if it has none; return the round as it stands.

        Refused means that another's draft was first, or our own whose reply was lost.

        Raises:
            ServiceError: if the round's row is gone.
        """
        result = self.rows.update(
            self._pk,
            keys.round_sk(number),
            expressions.ROUND_ADOPT,
            {"draft": draft, "planning": RoundState.PLANNING.value},
        )
        return _round_row(self._standing(result, keys.round_sk(number)))

    def note_cursor(self, number: int, cursor: int) -> None:
        """Note that the round's first `cursor` task rows exist.

        Refused means that another planner of the same draft is further: no news.
        """
        self.rows.update(
            self._pk,
            keys.round_sk(number),
            expressions.ROUND_CURSOR,
            {"cursor": cursor, "planning": RoundState.PLANNING.value},
        )

    def open_round(self, number: int, tasks: int, items: int, retried: Mapping[str, int]) -> None:
        """The round is planned; refused means that another planner of its draft has said so.

        Raises:
            ServiceError: if the round's row is gone.
        """
        result = self.rows.update(
            self._pk,
            keys.round_sk(number),
            expressions.ROUND_OPEN,
            {
                "planning": RoundState.PLANNING.value,
                "open": RoundState.OPEN.value,
                "tasks": tasks,
                "items": items,
                "retried": dict(retried),
                "now": self._ms(),
            },
        )
        self._standing(result, keys.round_sk(number))

    def submissions(self) -> list[SubmissionRow]:
        """Every submission, oldest first."""
        return [
            _submission_row(row)
            for row in self.rows.query(self._pk, after=keys.SUBMIT_PREFIX, consistent=True)
            if str(row["sk"]).startswith(keys.SUBMIT_PREFIX)
        ]

    def intend(
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
        row: Row = {
            "pk": self._pk,
            "sk": keys.submit_sk(round_no, number),
            "state": SubmitState.INTENT.value,
            "token": token or uuid.uuid4().hex[:12],
            "workers": workers,
            "array_size": array_size,
            "intent": self._ms(),
            "asked": asked,
        }
        standing = self.rows.put_new(row).row or row
        if standing.get("refused"):
            # Refused means that another caller was quicker, whose arrays or intent stand then.
            again = self.rows.update(
                self._pk,
                str(row["sk"]),
                expressions.INTEND_AGAIN,
                {
                    "token": standing["token"],
                    "workers": workers,
                    "array_size": array_size,
                    "asked": asked,
                    "intent": SubmitState.INTENT.value,
                    "now": self._ms(),
                    "yes": True,
                },
            )
            standing = again.row or standing
        return _submission_row(standing)

    def submitted(
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
            result = self.rows.update(
                self._pk,
                keys.submit_sk(submission.round_no, submission.number),
                expressions.SUBMITTED,
                {
                    "token": submission.token,
                    "intent": SubmitState.INTENT.value,
                    "submitted": SubmitState.SUBMITTED.value,
                    "slurm_job_ids": list(slurm_job_ids),
                    "known": list(known),
                    "now": self._ms(),
                },
            )
            if result.row is None or result.row["token"] != submission.token:
                return None
            standing = _submission_row(result.row)
            if len(standing.slurm_job_ids) >= len(slurm_job_ids):
                return standing
            known = standing.slurm_job_ids

    def keep_submission(self, submission: SubmissionRow) -> SubmissionRow:
        """Write the row of a submission that has arrays again, or return the one that stands."""
        row: Row = {
            "pk": self._pk,
            "sk": keys.submit_sk(submission.round_no, submission.number),
            "state": SubmitState.INTENT.value,
            "token": submission.token,
            "workers": submission.workers,
            "array_size": submission.array_size,
            "intent": submission.intent_ms,
            "asked": submission.asked,
        }
        return _submission_row(self.rows.put_new(row).row or row)

    def bar(self, round_no: int, number: int) -> SubmissionRow:
        """Take a submission's number for no workers, or return the one that stands.

        Whoever intends workers under this number finds it barred: see `SubmissionRow.empty`.
        """
        row: Row = {
            "pk": self._pk,
            "sk": keys.submit_sk(round_no, number),
            "state": SubmitState.SUBMITTED.value,
            "token": uuid.uuid4().hex[:12],
            "workers": 0,
            "array_size": 1,
            "slurm_job_ids": [],
            "intent": self._ms(),
            "submitted": self._ms(),
            "asked": True,
        }
        return _submission_row(self.rows.put_new(row).row or row)

    def refuse_submission(self, submission: SubmissionRow) -> None:
        """Note that Slurm has refused the arrays of an intent, for certain.

        Refused means that another caller's array was taken under the same token meanwhile: it
        stands.
        """
        self.rows.update(
            self._pk,
            keys.submit_sk(submission.round_no, submission.number),
            expressions.SUBMIT_REFUSED,
            {"token": submission.token, "intent": SubmitState.INTENT.value, "yes": True},
        )

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
            claim: Row = {"pk": self._pk, "sk": keys.once_sk(once), "mark": mine, **line}
            standing = self.rows.put_new(claim).row or claim
            # Our own claim, where its reply was lost, bears our mark.
            mark = str(standing["mark"])
            line = {name: standing[name] for name in line}
        self.rows.put_new({"pk": keys.event_pk(self.job), "sk": mark, **line})
        return mark == mine

    def once(self, prefix: str) -> Iterator[tuple[str, AuditEvent]]:
        """Lines of the audit trail that were appended `once` under names with this prefix."""
        start = keys.once_sk(prefix)
        for row in self.rows.query(self._pk, after=start, consistent=True):
            if not str(row["sk"]).startswith(start):
                return
            yield str(row["sk"]).removeprefix(keys.once_sk("")), _event(row, str(row["mark"]))

    def events(self, after: str = "") -> Iterator[AuditEvent]:
        """The audit trail past a mark, oldest first."""
        for row in self.rows.query(keys.event_pk(self.job), after=after):
            yield _event(row, str(row["sk"]))

    def _standing(self, result: Applied | Refused, sk: str) -> Row:
        """The row after a write that is as good when it was made by another before."""
        if result.row is None:
            raise ServiceError(
                f"job_id: row {sk} of {self.job!r} is gone from the table; "
                f"slurmctl doctor --repair --job {self.job} says what is left"
            )
        return result.row

    def _ms(self) -> int:
        return int(self.clock.now() * 1000)


def newest_jobs(rows: Rows, most: int) -> list[JobId]:
    """The ids of the jobs that were created last, the newest first; one request per page."""
    found = rows.query(keys.JOBS_PK, limit=most, backwards=True)
    return [JobId(str(row["sk"]).partition("#")[2]) for row in found]


def _event(row: Row, mark: str) -> AuditEvent:
    return AuditEvent(
        at_ms=int(mark.split("#")[0]),
        actor=str(row["actor"]),
        action=str(row["action"]),
        detail=cast("dict[str, Value]", row["detail"]),
        mark=mark,
    )


def _job_row(job: JobId, row: Row) -> JobRow:
    return JobRow(
        job=job,
        state=JobState(row["state"]),
        shards=int_of(row, "shards"),
        identity=str(row["identity"]),
        config=str(row["config"]),
        rounds=int_of(row, "rounds"),
        stop=str(row.get("stop") or ""),
        created_ms=int_of(row, "created"),
        paused=str(row.get("paused") or ""),
        voided=int_of(row, "repaired"),
        draft=int_of(row, "draft"),
    )


def _round_row(row: Row) -> RoundRow:
    return RoundRow(
        number=int(str(row["sk"]).removeprefix(keys.ROUND_PREFIX)),
        state=RoundState(row["state"]),
        source=str(row["source"]),
        selector=cast("dict[str, int]", row["selector"]),
        tasks=int_of(row, "tasks"),
        items=int_of(row, "items"),
        cursor=int_of(row, "cursor"),
        created_ms=int_of(row, "created"),
        opened_ms=int_of(row, "opened"),
        retried=cast("dict[str, int]", row.get("retried") or {}),
        tasks_back=cast("dict[str, int]", row.get("tasks_back") or {}),
        only=str(row.get("only") or ""),
        slurm=cast("dict[str, str]", row.get("slurm") or {}),
        delay_s=int_of(row, "delay"),
        version=str(row.get("version") or ""),
        draft=int_of(row, "draft"),
    )


def _submission_row(row: Row) -> SubmissionRow:
    round_no, number = str(row["sk"]).removeprefix(keys.SUBMIT_PREFIX).split("#")
    return SubmissionRow(
        round_no=int(round_no),
        number=int(number),
        state=SubmitState(row["state"]),
        token=str(row["token"]),
        workers=int_of(row, "workers"),
        array_size=int_of(row, "array_size"),
        slurm_job_ids=tuple(cast("list[str]", row.get("slurm_job_ids") or [])),
        intent_ms=int_of(row, "intent"),
        submitted_ms=int_of(row, "submitted"),
        asked=bool(row.get("asked")),
        refused=bool(row.get("refused")),
    )

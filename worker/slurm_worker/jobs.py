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

from slurm_worker import expressions, keys
from slurm_worker.errors import UserError
from slurm_worker.keys import JobId, JobState, RoundState, SubmitState
from slurm_worker.ports import Applied, Clock, Row, Rows, Value, int_of

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

    @property
    def label(self) -> str:
        """How logs and folders name the submission."""
        return f"{self.round_no:03}-{self.number}"

    def sizes(self) -> list[int]:
        """Workers of each array."""
        return array_sizes(self.workers, self.array_size)


def array_sizes(workers: int, most: int) -> list[int]:
    """The elements of each of as few arrays as hold the workers, at most so many in one."""
    whole, rest = divmod(workers, most)
    return [most] * whole + ([rest] if rest else [])


@dataclass(frozen=True, slots=True)
class Event:
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

    def create(self, identity: str, config: str, shards: int) -> JobRow:
        """Create the META row, or return the one that stands (another's, or our lost reply).

        Two writes: the second enters the job in the register of jobs.
        """
        row: Row = {
            "pk": self._pk,
            "sk": keys.META,
            "state": JobState.PLANNING.value,
            "identity": identity,
            "config": config,
            "shards": shards,
            "rounds": 0,
            "created": self._ms(),
        }
        standing = _job_row(self.job, self.rows.put_new(row).row or row)
        # By now the job has its one date of birth, so writing this again changes nothing.
        self.rows.put_new(
            {"pk": keys.JOBS_PK, "sk": keys.register_sk(standing.created_ms, self.job)}
        )
        return standing

    def set_config(self, digest: str) -> None:
        """Point new workers at another resolved configuration; repeating it does no harm."""
        self.rows.update(self._pk, keys.META, expressions.JOB_CONFIG, {"config": digest})

    def open(self, rounds: int) -> bool:
        """Tell workers that `rounds` rounds are open.

        False if they were open already, or where this call's own first reply was lost.
        """
        result = self.rows.update(
            self._pk,
            keys.META,
            expressions.JOB_OPEN,
            {"open": JobState.OPEN.value, "rounds": rounds},
        )
        return isinstance(result, Applied)

    def begin_generation(self) -> None:
        """Have everybody look at every row again; repeating it costs reads, and does no harm.

        The clock only tells this job's generations from those of a META row that was lost.
        """
        values: dict[str, Value] = {"now": int(self.clock.now()), "one": 1}
        self.rows.update(self._pk, keys.META, expressions.JOB_GENERATION, values)

    def stop(self, reason: str) -> None:
        """Trip the job's breaker; the first reason stays."""
        self.rows.update(self._pk, keys.META, expressions.JOB_STOP, {"reason": reason[:400]})

    def pause(self, who: str) -> None:
        """Have nobody lease a task; refused means that the job is paused already."""
        self.rows.update(self._pk, keys.META, expressions.JOB_PAUSE, {"who": who[:200]})

    def resume(self) -> None:
        """Reset the breaker and a pause."""
        self.rows.update(self._pk, keys.META, expressions.JOB_RESUME, {})

    def delete(self) -> None:
        """Forget a job whose plan was refused before it had tasks."""
        job = self.find()
        if job is not None:
            self.rows.delete(keys.JOBS_PK, keys.register_sk(job.created_ms, self.job))
        for row in list(self.rows.query(self._pk)):
            self.rows.delete(self._pk, str(row["sk"]))

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
    ) -> RoundRow:
        """Create a round's row, or return the one that stands."""
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
        }
        return _round_row(self.rows.put_new(row).row or row)

    def note_cursor(self, number: int, cursor: int) -> None:
        """Note that the round's first `cursor` task rows exist; refused means no news."""
        self.rows.update(
            self._pk,
            keys.round_sk(number),
            expressions.ROUND_CURSOR,
            {"cursor": cursor, "planning": RoundState.PLANNING.value},
        )

    def open_round(self, number: int, tasks: int, items: int, retried: Mapping[str, int]) -> None:
        """The round is planned; refused means that another planner has said so."""
        self.rows.update(
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

    def submissions(self) -> list[SubmissionRow]:
        """Every submission, oldest first."""
        return [
            _submission_row(row)
            for row in self.rows.query(self._pk, after=keys.SUBMIT_PREFIX, consistent=True)
            if str(row["sk"]).startswith(keys.SUBMIT_PREFIX)
        ]

    def intend(
        self, round_no: int, number: int, workers: int, array_size: int, *, asked: bool = False
    ) -> SubmissionRow:
        """Write a submission's intent before ``sbatch``, or return the one that stands."""
        row: Row = {
            "pk": self._pk,
            "sk": keys.submit_sk(round_no, number),
            "state": SubmitState.INTENT.value,
            "token": uuid.uuid4().hex[:12],
            "workers": workers,
            "array_size": array_size,
            "intent": self._ms(),
            "asked": asked,
        }
        return _submission_row(self.rows.put_new(row).row or row)

    def submitted(self, submission: SubmissionRow, slurm_job_ids: Sequence[str]) -> None:
        """Note the arrays' ids; repeating it does no harm."""
        self.rows.update(
            self._pk,
            keys.submit_sk(submission.round_no, submission.number),
            expressions.SUBMITTED,
            {
                "intent": SubmitState.INTENT.value,
                "submitted": SubmitState.SUBMITTED.value,
                "slurm_job_ids": list(slurm_job_ids),
                "now": self._ms(),
            },
        )

    def forget_submission(self, submission: SubmissionRow) -> None:
        """Delete an intent that Slurm refused for certain."""
        self.rows.delete(self._pk, keys.submit_sk(submission.round_no, submission.number))

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

    def once(self, prefix: str) -> Iterator[tuple[str, Event]]:
        """Lines of the audit trail that were appended `once` under names with this prefix."""
        start = keys.once_sk(prefix)
        for row in self.rows.query(self._pk, after=start, consistent=True):
            if not str(row["sk"]).startswith(start):
                return
            yield str(row["sk"]).removeprefix(keys.once_sk("")), _event(row, str(row["mark"]))

    def events(self, after: str = "") -> Iterator[Event]:
        """The audit trail past a mark, oldest first."""
        for row in self.rows.query(keys.event_pk(self.job), after=after):
            yield _event(row, str(row["sk"]))

    def _ms(self) -> int:
        return int(self.clock.now() * 1000)


def newest_jobs(rows: Rows, most: int) -> list[JobId]:
    """The ids of the jobs that were created last, the newest first; one request per page."""
    found = rows.query(keys.JOBS_PK, limit=most, backwards=True)
    return [JobId(str(row["sk"]).partition("#")[2]) for row in found]


def _event(row: Row, mark: str) -> Event:
    return Event(
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
    )

"""What real releases of Slurm print is understood; recorded by ``recorded/record.sh``."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from airflow_slurm_provider.slurm import submission
from airflow_slurm_provider.slurm.accounting import STATE_FIELDS, elements_of, parse_records
from airflow_slurm_provider.slurm.array_state import merge, parse_job_id, parse_queue
from airflow_slurm_provider.slurm.client import SlurmClient, SubmitLimitError
from airflow_slurm_provider.slurm.states import ElementState
from airflow_slurm_provider.slurm.submission import SubmitExit
from airflow_slurm_provider.slurm.transport import CommandResult
from slurm_worker.errors import ErrorClass, ServiceError, UserError

S = ElementState
RECORDED = Path(__file__).with_name("recorded")
ENDING_FIELDS = [
    "JobID",
    "State",
    "ExitCode",
    "NodeList",
    "Elapsed",
    "MaxRSS",
    "ReqMem",
    "AllocCPUS",
]


@pytest.fixture(params=sorted(path.name for path in RECORDED.iterdir() if path.is_dir()))
def release(request: pytest.FixtureRequest) -> Path:
    return RECORDED / str(request.param)


def text(release: Path, name: str) -> str:
    return (release / name).read_text()


class Answers:
    """A transport that answers every command alike; uploads succeed."""

    def __init__(self, result: CommandResult) -> None:
        self.result = result

    def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
        upload = submission.PUT_SCRIPT in command or submission.MAKE_FOLDER in command
        return (
            CommandResult(0, "/home/lab\n" if "pwd" in command else "", "")
            if upload
            else (self.result)
        )

    def close(self) -> None:
        pass


def client(code: int, out: str = "", err: str = "") -> SlurmClient:
    return SlurmClient(Answers(CommandResult(code, out, err)), "lab")


def test_releases_from_20_11_on_are_recorded() -> None:
    found = sorted(path.name for path in RECORDED.iterdir() if path.is_dir())
    assert found == ["20.11", "22.05", "24.11"]


def test_the_version_and_the_largest_array_are_read(release: Path) -> None:
    assert release.name in client(0, text(release, "version")).version()
    assert client(0, text(release, "config")).max_array_size() > 1


def test_the_queue_and_the_accounting_agree_on_every_element(
    release: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = parse_queue(text(release, "queue"))
    records = elements_of(parse_records(text(release, "records"), STATE_FIELDS))
    job, held = sorted({*queue, *records}, key=int)
    array = merge(job, queue[job], records[job])
    states = {n: element.state for n, element in array.elements.items()}
    assert {n: states[n] for n in (0, 1, 2, 4)} == {
        0: S.COMPLETED,
        1: S.FAILED,
        2: S.CANCELLED,
        4: S.RUNNING,
    }
    assert states[3] in (S.PENDING, S.COMPLETING), "it was requeued, and waits"
    assert (array.elements[1].exit_code, array.alive, array.unknown) == ("3:0", 2, False)
    waiting = merge(held, queue[held], records.get(held, {}))
    assert waiting.counts() == {"PENDING": 8}
    assert {element.reason for element in queue[held].values()} == {"JobHeldUser"}
    short = parse_queue(text(release, "queue-short"))
    assert {n: element.state for n, element in short[held].items()} == dict.fromkeys(
        range(8), S.PENDING
    )
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_each_ending_has_its_class(release: Path) -> None:
    records = parse_records(text(release, "endings"), ENDING_FIELDS)
    endings = {(record.element, record.restart): record for record in records if record.ended}
    assert endings[0, 0].error_class is None
    assert endings[1, 0].error_class is ErrorClass.HANDLER_BUG, "exit code 3 of a worker"
    assert endings[2, 0].error_class is ErrorClass.CANCELLED
    assert endings[3, 0].error_class is ErrorClass.PREEMPTED
    assert endings[3, 0].state is S.REQUEUED
    assert endings[4, 0].error_class is ErrorClass.WALLTIME
    assert endings[4, 0].elapsed_s >= 60
    assert endings[4, 0].node


@pytest.mark.parametrize("refused", ["refused-partition", "refused-array"])
def test_a_permanent_refusal_is_a_user_error(release: Path, refused: str) -> None:
    with pytest.raises(
        UserError, match=r"refused the array: .*; correct the slurm section"
    ) as raised:
        client(SubmitExit.REFUSED, err=text(release, refused)).submit("n", "#!/bin/sh\n", "f")
    assert not isinstance(raised.value, ServiceError)


def test_a_refusal_for_the_number_of_jobs_is_an_error_of_its_own(release: Path) -> None:
    with pytest.raises(SubmitLimitError):
        client(SubmitExit.REFUSED, err=text(release, "refused-limit")).submit(
            "n", "#!/bin/sh\n", "f"
        )


def test_squeue_calls_forgotten_ids_invalid(release: Path) -> None:
    assert "invalid job id" in text(release, "squeue-unknown").lower()


def test_a_submitted_arrays_id_is_read(release: Path) -> None:
    first = text(release, "queue").splitlines()[0]
    assert parse_job_id(first.split("|")[0])


def test_an_array_that_was_cancelled_before_it_was_split_up_has_ended() -> None:
    # Seen on 22.05, where scancel came within the second of sbatch.
    records = elements_of(parse_records("722|CANCELLED by 1001||0:0", STATE_FIELDS))
    array = merge("722", {}, records["722"])
    assert (array.counts(), array.alive, array.unknown) == ({"CANCELLED": 1}, 0, False)

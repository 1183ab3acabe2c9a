"""One array per name, whatever fails: the real protocol in a real shell on a fake Slurm."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_slurm_provider.slurm import submission
from airflow_slurm_provider.slurm.array_state import ArrayKey
from airflow_slurm_provider.slurm.client import (
    SlurmClient,
    SubmissionCancelledError,
    SubmitLimitError,
    SubmitRefusedError,
)
from airflow_slurm_provider.slurm.ssh import SshTransport
from airflow_slurm_provider.slurm.transport import CommandResult, LocalTransport, Transport
from slurm_worker.errors import ServiceError, UserError
from tests.unit.slurm.fake_slurm import BreakingTransport, FakeSlurm, Time

Wait = Callable[[Callable[[], bool]], None]
NAME = "flights.r0s1.0a1b2c"
SCRIPT = f"#!/bin/bash\n#SBATCH --job-name={NAME}\ntrue\n"


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path / "slurm")


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    return tmp_path / "remote dir"


@pytest.fixture
def client(slurm: FakeSlurm, remote: Path, time: Time) -> SlurmClient:
    return SlurmClient(slurm.transport(), str(remote), time.clock, time.sleep)


@pytest.fixture
def place(remote: Path) -> Path:
    return remote / "jobs" / "flights" / NAME


def submit(client: SlurmClient) -> str:
    return client.submit(NAME, SCRIPT, "flights")


def begin(place: Path, attempt: int = 1, *, age: int = 0) -> None:
    """A caller that died after mkdir, `age` seconds ago."""
    folder = place / f"attempt.{attempt}"
    folder.mkdir(parents=True)
    subprocess.run(
        ["sh", "-c", f'echo $(($(date +%s) - {age})) > "$1/at"', "sh", str(folder)], check=True
    )


def make_old(place: Path, attempt: int = 1) -> None:
    at = place / f"attempt.{attempt}" / "at"
    at.write_text(str(int(at.read_text()) - submission.STALE_ATTEMPT_S - 1))


def arrays(slurm: FakeSlurm) -> list[str]:
    return slurm.lines("jobs") + slurm.lines("ended")


def test_the_script_is_submitted_from_its_folder(
    client: SlurmClient, slurm: FakeSlurm, place: Path
) -> None:
    assert submit(client) == "101"
    assert slurm.lines("calls") == [f"--parsable --job-name={NAME} script.sh"]
    assert (place / "script.sh").read_text() == submission.guarded(SCRIPT)
    assert (place / "id").read_text() == "101\n"
    assert sorted(path.name for path in place.iterdir()) == ["attempt.1", "id", "script.sh"]


def test_the_same_name_again_is_the_same_array(client: SlurmClient, slurm: FakeSlurm) -> None:
    assert [submit(client) for _ in range(3)] == ["101"] * 3
    assert len(slurm.lines("calls")) == 1


def test_another_name_is_another_array(client: SlurmClient) -> None:
    assert submit(client) == "101"
    assert client.submit("flights.r0s2.ffff", SCRIPT, "flights") == "102"


def test_a_banner_around_the_id_does_no_harm(client: SlurmClient, slurm: FakeSlurm) -> None:
    slurm.mode("banner")
    assert submit(client) == "101"


def test_callers_at_the_same_time_get_one_array(slurm: FakeSlurm, remote: Path) -> None:
    clients = [SlurmClient(slurm.transport(), str(remote)) for _ in range(8)]
    with ThreadPoolExecutor(len(clients)) as pool:
        assert set(pool.map(submit, clients)) == {"101"}
    assert len(slurm.lines("calls")) == 1


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_connection_lost_at_any_step_leaves_one_array(
    slurm: FakeSlurm, remote: Path, time: Time, step: int, after: bool
) -> None:
    breaking = BreakingTransport(slurm.transport(), step, after=after)
    with pytest.raises(ServiceError, match="the connection broke"):
        submit(SlurmClient(breaking, str(remote), time.clock, time.sleep))
    assert breaking.commands == step + 1
    again = SlurmClient(slurm.transport(), str(remote), time.clock, time.sleep)
    assert submit(again) == "101"
    assert (len(slurm.lines("calls")), time.slept) == (1, [])


def test_a_submission_takes_three_commands_and_a_repeated_one_two(
    slurm: FakeSlurm, remote: Path
) -> None:
    counting = BreakingTransport(slurm.transport(), -1, after=False)
    submit(SlurmClient(counting, str(remote)))
    assert counting.commands == 3
    submit(SlurmClient(counting, str(remote)))
    assert counting.commands == 5


@pytest.mark.parametrize("mode", ["kill-caller", "lost", "silent", "odd-refusal-but-taken"])
def test_an_array_whose_id_was_lost_is_found_by_its_name(
    client: SlurmClient, slurm: FakeSlurm, mode: str
) -> None:
    slurm.mode(mode)
    try:
        assert submit(client) == "101"
    except ServiceError:
        slurm.mode("ok")
        assert submit(client) == "101"
    assert len(slurm.lines("calls")) == 1


def test_an_array_that_has_ended_meanwhile_is_found_in_the_accounting(
    client: SlurmClient, slurm: FakeSlurm
) -> None:
    slurm.mode("lost-and-ended")
    assert submit(client) == "101"
    assert len(slurm.lines("calls")) == 1


@pytest.mark.parametrize("mode", ["unreachable", "killed-by-timeout"])
def test_while_the_result_is_unknown_nothing_is_submitted_again(
    client: SlurmClient, slurm: FakeSlurm, place: Path, time: Time, mode: str
) -> None:
    slurm.mode(mode)
    with pytest.raises(ServiceError, match="it will not be submitted twice"):
        submit(client)
    assert time.now < 30
    slurm.mode("ok")
    with pytest.raises(ServiceError, match="not known yet"):
        submit(client)
    assert len(slurm.lines("calls")) == 1
    make_old(place)
    assert submit(client) == "101"
    assert len(arrays(slurm)) == 1


def test_the_error_is_reported_while_the_result_is_unknown(
    client: SlurmClient, slurm: FakeSlurm
) -> None:
    slurm.mode("unreachable")
    with pytest.raises(ServiceError, match=r"Unable to contact slurm controller \(connect fail"):
        submit(client)


WRONG = SCRIPT.replace("true", "#SBATCH --partition=nope")


class Crossed:
    """A transport behind which another caller puts its script, once, just before sbatch."""

    def __init__(self, inner: Transport, other: SlurmClient) -> None:
        self._inner = inner
        self._other: SlurmClient | None = other

    def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
        if stdin == submission.SUBMIT.encode() and self._other is not None:
            other, self._other = self._other, None
            with contextlib.suppress(UserError):
                other.submit(NAME, WRONG, "flights")
        return self._inner.run(command, stdin, timeout)

    def close(self) -> None:
        self._inner.close()


def test_a_valid_script_is_not_refused_because_of_another_callers_script(
    client: SlurmClient, slurm: FakeSlurm, remote: Path, time: Time, place: Path
) -> None:
    crossed = SlurmClient(Crossed(slurm.transport(), client), str(remote), time.clock, time.sleep)
    assert submit(crossed) == "101"
    assert (place / "script.sh").read_text() == submission.guarded(SCRIPT)
    assert len(arrays(slurm)) == 1


def test_a_refused_script_is_not_uploaded_again(client: SlurmClient, slurm: FakeSlurm) -> None:
    with pytest.raises(SubmitRefusedError):
        client.submit(NAME, WRONG, "flights")
    assert len(slurm.lines("calls")) == 1


def test_a_refusal_is_reported_and_a_corrected_script_is_submitted(
    client: SlurmClient, slurm: FakeSlurm, time: Time
) -> None:
    slurm.mode("refuse")
    with pytest.raises(UserError) as caught:
        submit(client)
    assert not isinstance(caught.value, ServiceError)
    assert str(caught.value) == (
        "slurm: sbatch refused the array: invalid partition specified: nope; Batch job submission "
        "failed: Invalid partition name specified; correct the slurm section"
    )
    slurm.mode("ok")
    assert submit(client) == "101"
    assert (len(arrays(slurm)), time.slept) == (1, [])


def test_a_full_queue_is_a_temporary_error(client: SlurmClient, slurm: FakeSlurm) -> None:
    slurm.mode("full")
    with pytest.raises(SubmitLimitError, match=r"SubmitJob.*submit again when fewer jobs are in"):
        submit(client)
    slurm.mode("ok")
    assert submit(client) == "101"


def test_a_young_attempt_of_another_caller_is_waited_for(
    client: SlurmClient, slurm: FakeSlurm, place: Path, time: Time
) -> None:
    begin(place)
    with pytest.raises(ServiceError, match="not known yet"):
        submit(client)
    assert time.now > submission.STALE_ATTEMPT_S
    assert max(time.slept) <= 5
    assert slurm.lines("calls") == []


def test_an_attempt_that_died_before_it_recorded_its_time_becomes_old(
    client: SlurmClient, slurm: FakeSlurm, place: Path
) -> None:
    (place / "attempt.1").mkdir(parents=True)
    with pytest.raises(ServiceError, match="not known yet"):
        submit(client)
    make_old(place)
    assert submit(client) == "101"


def test_a_dead_attempt_without_an_array_is_taken_over(
    client: SlurmClient, slurm: FakeSlurm, place: Path, time: Time
) -> None:
    begin(place, age=submission.STALE_ATTEMPT_S + 5)
    assert submit(client) == "101"
    assert (place / "attempt.2").is_dir()
    assert time.slept == []


def test_of_many_callers_that_take_over_one_submits(
    slurm: FakeSlurm, remote: Path, place: Path
) -> None:
    begin(place, age=1000)
    clients = [SlurmClient(slurm.transport(), str(remote)) for _ in range(8)]
    with ThreadPoolExecutor(len(clients)) as pool:
        assert set(pool.map(submit, clients)) == {"101"}
    assert len(slurm.lines("calls")) == 1


@pytest.mark.parametrize("where", ["jobs", "ended"])
def test_a_dead_attempt_with_an_array_is_not_repeated(
    client: SlurmClient, slurm: FakeSlurm, place: Path, where: str
) -> None:
    begin(place, age=100_000)
    (slurm.folder / where).write_text(f"77 {NAME}\n99 other\n")
    assert submit(client) == "77"
    assert slurm.lines("calls") == []


@pytest.mark.parametrize("switch", ["squeue-down", "sacct-down"])
def test_an_error_of_slurm_is_not_taken_for_absence(
    client: SlurmClient, slurm: FakeSlurm, place: Path, switch: str
) -> None:
    begin(place, age=100_000)
    slurm.set(switch)
    with pytest.raises(ServiceError, match="not known yet"):
        submit(client)
    assert slurm.lines("calls") == []
    slurm.clear(switch)
    assert submit(client) == "101"


def test_a_site_without_accounting_can_be_submitted_to(
    client: SlurmClient, slurm: FakeSlurm, place: Path
) -> None:
    begin(place, age=100_000)
    slurm.set("no-accounting")
    assert submit(client) == "101"


def test_if_workers_ran_and_slurm_has_no_record_nothing_is_submitted(
    client: SlurmClient, slurm: FakeSlurm, place: Path
) -> None:
    begin(place, age=100_000)
    slurm.set("no-accounting")
    (place / "worker-0.log").write_text("I ran")
    with pytest.raises(ServiceError, match=r"write the array's job id into .*/id, or remove"):
        submit(client)
    assert slurm.lines("calls") == []
    (place / "id").write_text("55\n")
    assert submit(client) == "55"


def test_a_caller_that_was_overtaken_cancels_what_it_submitted(
    client: SlurmClient, slurm: FakeSlurm
) -> None:
    slurm.mode("overtaken")
    assert submit(client) == "4711"
    assert slurm.lines("cancelled") == ["101"]
    assert arrays(slurm) == []


def test_after_a_caller_killed_before_sbatch_there_is_one_array(
    client: SlurmClient, slurm: FakeSlurm, place: Path
) -> None:
    slurm.mode("kill-caller-before")
    with pytest.raises(ServiceError):
        submit(client)
    slurm.mode("ok")
    make_old(place)
    assert submit(client) == "101"
    assert len(arrays(slurm)) == 1


def test_a_recorded_id_decides_whatever_else_is_in_the_folder(
    slurm: FakeSlurm, place: Path
) -> None:
    begin(place, age=100_000)
    (place / "id").write_text("55\n")
    command = submission.from_stdin(str(place), NAME, "t")
    result = slurm.transport().run(command, submission.SUBMIT.encode())
    assert (result.code, result.stdout) == (submission.SubmitExit.KNOWN, "55\n")
    assert slurm.lines("calls") == []


def test_half_a_program_from_a_broken_connection_does_nothing(
    slurm: FakeSlurm, place: Path
) -> None:
    place.mkdir(parents=True)
    program = submission.SUBMIT.encode()
    command = submission.from_stdin(str(place), NAME, "t")
    for cut in range(0, len(program) - len('main "$@"\n') + 1, 97):
        slurm.transport().run(command, program[:cut])
    assert list(place.iterdir()) == []
    assert slurm.lines("calls") == []


def test_half_a_script_is_never_submitted(
    client: SlurmClient, slurm: FakeSlurm, remote: Path, place: Path
) -> None:
    command = submission.one_line(submission.PUT_SCRIPT, str(place), str(len(SCRIPT)), "t")
    assert slurm.transport().run(command, SCRIPT.encode()[:-3]).code != 0
    assert not (place / "script.sh").exists()
    assert submit(client) == "101"
    assert (place / "script.sh").read_text() == submission.guarded(SCRIPT)


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a b", "$(id)", "", "-n", "a\nb", "a,b", "x" * 201]
)
def test_a_name_that_a_shell_or_slurm_could_misread_is_refused(
    client: SlurmClient, name: str
) -> None:
    for arguments in ((name, SCRIPT, "flights"), (NAME, SCRIPT, name)):
        with pytest.raises(UserError, match="can't be the name of a"):
            client.submit(*arguments)


def test_a_folder_that_can_not_be_written_is_reported(slurm: FakeSlurm, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    client = SlurmClient(slurm.transport(), str(tmp_path / "file" / "below"))
    with pytest.raises(ServiceError, match=r"making the remote folder failed: .*Not a directory"):
        submit(client)


def cancel(client: SlurmClient) -> list[str]:
    """What `slurmctl cancel` does with a submission whose id is not known."""
    ids = client.withdraw([NAME], "flights")
    return [array.slurm_job_id for array in client.cancel([ArrayKey(ids.get(NAME, ""), NAME)])]


@pytest.mark.parametrize("mode", ["kill-caller", "silent"])
def test_an_array_whose_id_was_lost_is_cancelled_by_its_name(
    client: SlurmClient, slurm: FakeSlurm, place: Path, mode: str
) -> None:
    slurm.mode(mode)
    with contextlib.suppress(ServiceError):
        submit(client)
    (place / "id").unlink(missing_ok=True)
    assert cancel(client) == ["101"]
    assert slurm.lines("jobs") == []


@pytest.mark.parametrize("mode", ["paused", "paused-and-killed"])
def test_no_array_is_left_of_a_submitter_that_was_paused_while_it_was_cancelled(
    client: SlurmClient, slurm: FakeSlurm, remote: Path, wait_for: Wait, mode: str
) -> None:
    slurm.mode(mode)
    slurm.set("pause")
    with ThreadPoolExecutor(1) as pool:
        submitter = pool.submit(submit, SlurmClient(slurm.transport(), str(remote)))
        wait_for(lambda: bool(slurm.lines("calls")))
        assert cancel(client) == []
        slurm.clear("pause")
        with pytest.raises((SubmissionCancelledError, ServiceError)):
            submitter.result()
    slurm.mode("ok")
    with pytest.raises(SubmissionCancelledError, match="cancelled before Slurm had its array"):
        submit(client)
    assert slurm.lines("jobs") == []
    assert slurm.lines("cancelled") == ["101"]


@pytest.mark.parametrize("begun", [False, True])
def test_a_submission_that_was_withdrawn_is_never_submitted(
    client: SlurmClient, slurm: FakeSlurm, place: Path, begun: bool
) -> None:
    if begun:
        begin(place, age=100_000)
    assert client.withdraw([NAME], "flights") == {}
    for _ in range(2):
        with pytest.raises(SubmissionCancelledError):
            submit(client)
    assert slurm.lines("calls") == []


def test_withdrawing_leaves_an_existing_array_alone(client: SlurmClient, slurm: FakeSlurm) -> None:
    assert submit(client) == "101"
    assert client.withdraw([NAME, "flights.r0s1.0a1b2c.1"], "flights") == {NAME: "101"}
    assert submit(client) == "101"
    assert slurm.lines("jobs") == [f"101 {NAME}"]


def test_a_withdrawal_fails_if_slurm_does_not_answer(client: SlurmClient, slurm: FakeSlurm) -> None:
    slurm.set("squeue-down")
    with pytest.raises(ServiceError, match="Unable to contact"):
        client.withdraw([NAME], "flights")
    slurm.clear("squeue-down")
    assert submit(client) == "101"


def test_cancelling_never_hits_another_job_with_the_same_number(
    client: SlurmClient, slurm: FakeSlurm
) -> None:
    (slurm.folder / "jobs").write_text("101 somebody.elses\n")
    (slurm.folder / "ended").write_text(f"101 {NAME}\n")
    assert client.cancel([ArrayKey("101", NAME)]) == []
    assert slurm.lines("jobs") == ["101 somebody.elses"]


def test_an_element_that_would_run_again_is_cancelled_too(
    client: SlurmClient, slurm: FakeSlurm
) -> None:
    """It was preempted just now: it is completing, and waits next."""
    (slurm.folder / "put-back").write_text(f"101 {NAME}\n")
    client.cancel([ArrayKey("101", NAME)])
    assert slurm.lines("put-back") == []


def test_an_element_that_would_run_again_is_cancelled_until_slurm_does_it(
    slurm: FakeSlurm, remote: Path
) -> None:
    (slurm.folder / "put-back").write_text(f"101 {NAME}\n")
    slurm.set("deaf")
    client = SlurmClient(slurm.transport(), str(remote), sleep=lambda _seconds: slurm.clear("deaf"))
    client.cancel([ArrayKey("101", NAME)])
    assert slurm.lines("put-back") == []


def test_a_cancel_that_slurm_did_not_carry_out_is_reported(
    client: SlurmClient, slurm: FakeSlurm, time: Time
) -> None:
    submit(client)
    slurm.set("deaf")
    with pytest.raises(ServiceError, match="array 101 still wait or run after scancel; try"):
        client.cancel([ArrayKey("101", NAME)])
    assert time.now < 60
    slurm.clear("deaf")
    assert client.cancel([ArrayKey("101", NAME)]) == [ArrayKey("101", NAME)]
    assert client.cancel([ArrayKey("101", NAME)]) == []


def test_an_overtaken_caller_reports_an_array_that_it_can_not_cancel(
    client: SlurmClient, slurm: FakeSlurm
) -> None:
    slurm.mode("overtaken")
    slurm.set("deaf")
    with pytest.raises(ServiceError, match="not known yet") as told:
        submit(client)
    assert "scancel did not end array 101" in str(told.value)
    slurm.clear("deaf")
    assert submit(client) == "4711"


@pytest.mark.parametrize(
    "first", ["#!/bin/sh", "#!/bin/bash -l", "#! /usr/bin/env bash", "#!/usr/bin/env -S zsh -e"]
)
def test_a_script_of_a_cancelled_submission_ends_before_its_first_command(
    tmp_path: Path, first: str
) -> None:
    script = submission.guarded(f"{first}\n#SBATCH --array=0\n\n# a comment\ntouch ran\n")
    assert script.splitlines()[:4] == [first, "#SBATCH --array=0", "", "# a comment"]
    (tmp_path / "id").write_text("cancelled\n")
    assert subprocess.run(["sh", "-c", script], cwd=tmp_path, check=False).returncode == 143
    assert not (tmp_path / "ran").exists()
    (tmp_path / "id").write_text("101\n")
    assert subprocess.run(["sh", "-c", script], cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("first", ["#!/usr/bin/env python3", "#!/bin/csh", "#!/opt/bash/bin/perl"])
def test_a_script_for_another_interpreter_stays_as_it_is(first: str) -> None:
    script = f"{first}\nprint('sh')\n"
    assert submission.guarded(script) == script


_SHOWS_ALL = r"""#!/bin/sh
env > "{folder}/environment"
for each in /proc/[0-9]*/cmdline; do tr '\0' ' ' < "$each" 2>/dev/null; echo; done > "{folder}/ps"
echo 101
"""


def test_a_sites_token_reaches_sbatch_and_no_command_line(
    slurm: FakeSlurm, remote: Path, tmp_path: Path
) -> None:
    (slurm.folder / "bin" / "timeout").unlink()
    (slurm.folder / "bin" / "sbatch").write_text(_SHOWS_ALL.format(folder=tmp_path))
    token = "eyJhbGciOiJIUzI1NiJ9.%s.it's\\n"
    transport = LocalTransport({**slurm.environment, "SLURM_JWT": token, "SECRET": "no"})
    assert submit(SlurmClient(transport, str(remote))) == "101"
    seen = (tmp_path / "environment").read_text().splitlines()
    assert f"SLURM_JWT={token}" in seen
    assert not any(line.startswith("SECRET=") for line in seen)
    shown = (tmp_path / "ps").read_text()
    assert "sbatch --parsable" in shown
    assert token not in shown


def test_a_sites_token_is_removed_before_a_scripts_first_command(tmp_path: Path) -> None:
    script = submission.guarded("#!/bin/sh\nenv > seen\n")
    environment = {"PATH": "/usr/bin:/bin", "SLURM_JWT": "token"}
    subprocess.run(["sh", "-euc", script], cwd=tmp_path, env=environment, check=True)
    assert "SLURM_JWT" not in (tmp_path / "seen").read_text()


def test_only_addresses_that_may_hold_a_password_are_left_out(
    slurm: FakeSlurm, remote: Path, tmp_path: Path
) -> None:
    (slurm.folder / "bin" / "timeout").unlink()
    (slurm.folder / "bin" / "sbatch").write_text(_SHOWS_ALL.format(folder=tmp_path))
    path = f"{slurm.environment['PATH']}:/opt/homebrew/opt/python@3.12/bin"
    kept = {"PATH": path, "AWS_PROFILE": "me@lab", "no_proxy": "localhost,.lab"}
    passwords = {
        "http_proxy": "me:secret@proxy:3128",
        "HTTPS_PROXY": "http://me:secret@proxy:3128",
        "AWS_ENDPOINT_URL_S3": "https://me:secret@s3.lab",
    }
    submit(SlurmClient(LocalTransport({**kept, **passwords}), str(remote)))
    seen = (tmp_path / "environment").read_text().splitlines()
    assert {f"{name}={value}" for name, value in kept.items()} <= set(seen)
    assert [line for line in seen if "secret" in line] == []


def test_sbatchs_errors_are_english_whatever_the_accounts_language(
    slurm: FakeSlurm, remote: Path, tmp_path: Path
) -> None:
    (slurm.folder / "bin" / "timeout").unlink()
    (slurm.folder / "bin" / "sbatch").write_text(_SHOWS_ALL.format(folder=tmp_path))
    transport = LocalTransport({**slurm.environment, "LC_ALL": "de_DE.UTF-8", "LANGUAGE": "de"})
    submit(SlurmClient(transport, str(remote)))
    seen = (tmp_path / "environment").read_text().splitlines()
    assert {"LANG=de_DE.UTF-8", "LC_MESSAGES=C"} <= set(seen)
    assert not any(line.startswith(("LC_ALL=", "LANGUAGE=")) for line in seen)


class Recording:
    """Runs commands, and keeps them."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.commands: list[str] = []

    def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
        self.commands.append(command)
        return self._inner.run(command, stdin, timeout)

    def close(self) -> None:
        self._inner.close()


def test_any_login_shell_passes_every_command_on(slurm: FakeSlurm, remote: Path) -> None:
    """csh takes neither a line end nor "!" within quotes; fish reads two backslashes as one."""
    recording = Recording(slurm.transport())
    client = SlurmClient(recording, str(remote))
    client.put_file("f", b"x")
    client.put_secret("flights", "s", b"x")
    submit(client)
    client.output(NAME, "flights", 0, 5)
    client.script(NAME, "flights")
    client.find([NAME])
    client.cancel([ArrayKey("101", NAME)])
    client.end("flights.other", "flights")
    survey = client.survey()
    survey.try_folder("x")
    survey.ignored_variables()
    survey.remove("flights")
    assert len(recording.commands) > 10
    lines = [SshTransport(connect=pytest.fail).wrap(command) for command in recording.commands]
    assert [line for line in lines if any(odd in line for odd in ("\n", "!", "\\\\"))] == []

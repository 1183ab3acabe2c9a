"""A transport runs a command and returns its output, wherever it runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

import pytest

from airflow_slurm_provider.slurm.ssh import SshTransport
from airflow_slurm_provider.slurm.transport import (
    CommandResult,
    LocalTransport,
    OnFirstUse,
    Transport,
)
from slurm_worker.errors import ServiceError, UserError


@pytest.fixture(params=["local", "ssh"])
def either(request: pytest.FixtureRequest) -> Transport:
    if request.param == "local":
        return LocalTransport()
    transport: SshTransport = request.getfixturevalue("ssh")
    return transport


# --- every transport


def test_a_commands_exit_code_and_output_arrive(either: Transport) -> None:
    assert either.run("echo out; echo err >&2; exit 3") == CommandResult(3, "out\n", "err\n")


def test_standard_input_reaches_the_command_whole(either: Transport) -> None:
    data = os.urandom(3_000_000)
    assert either.run("cat | wc -c", data).stdout.strip() == "3000000"


def test_a_command_without_input_gets_end_of_file(either: Transport) -> None:
    assert either.run("cat; echo end", timeout=10).stdout == "end\n"


def test_output_that_is_not_utf8_is_decoded_with_replacements(either: Transport) -> None:
    assert either.run("printf '\\377x'").stdout == "\ufffdx"


def test_a_command_that_does_not_answer_is_an_error_after_its_timeout(either: Transport) -> None:
    started = monotonic()
    with pytest.raises(ServiceError, match=r"no answer within 0.3 s to: sleep 5"):
        either.run("sleep 5", timeout=0.3)
    assert monotonic() - started < 4


def test_an_error_does_not_repeat_a_whole_program(either: Transport) -> None:
    with pytest.raises(ServiceError) as caught:
        either.run("sleep 5\necho second line", timeout=0.3)
    assert "second line" not in str(caught.value)


# --- local


def test_a_local_command_runs_in_the_home_folder_with_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert LocalTransport({"A": "b c"}).run('pwd; echo "$A"').stdout == f"{tmp_path}\nb c\n"


def test_a_local_command_continues_after_its_caller_stops_waiting(
    tmp_path: Path, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    with pytest.raises(ServiceError):
        LocalTransport().run(f"sleep 1; touch {tmp_path}/done", timeout=0.1)
    wait_for((tmp_path / "done").exists)


def test_an_interrupt_of_the_terminal_does_not_reach_a_local_command() -> None:
    assert LocalTransport().run("ps -o sid= -p $$").stdout.strip() != str(os.getsid(0))


# --- made later


def test_a_transport_is_made_once_and_not_before_a_command_is_run() -> None:
    made: list[Transport] = []

    def make() -> Transport:
        made.append(LocalTransport())
        return made[-1]

    transport = OnFirstUse(make)
    transport.close()
    assert made == []
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: transport.run("echo here").stdout, range(8)))
    assert (answers, len(made)) == (["here\n"] * 8, 1)


@pytest.mark.parametrize("kind", ["absent", "file"])
def test_a_home_that_is_no_folder_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    home = tmp_path / "home"
    if kind == "file":
        home.touch()
    monkeypatch.setenv("HOME", str(home))
    with pytest.raises(UserError, match=r"^cluster: HOME: this account can't enter '.*/home'"):
        LocalTransport().run("true")


def test_a_command_that_is_too_long_to_start_is_an_error_of_the_service() -> None:
    with pytest.raises(ServiceError, match="did not start"):
        LocalTransport().run(f": {'x' * 3_000_000}")

"""A mistake gets one line and its exit code, and leaves nothing that a good submit trips over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_slurm_provider.cli import app
from airflow_slurm_provider.cli.app import ExitCode
from airflow_slurm_provider.coordinator import api
from slurm_worker.errors import ExpiredCredentials, ServiceError, WrongClock, WrongSetting
from tests.unit.cli.conftest import Cli, empty_aws, write_config

MISUSE = [
    (["sbumit"], "command: 'sbumit' is unknown; did you mean 'submit'?"),
    (["frobnicate"], "command: 'frobnicate' is unknown; choose from plan, submit"),
    (["status"], "Missing argument 'JOB'; see slurmctl status --help"),
    (["status", "job-1", "--jsn"], "--json"),
    (["wait", "job-1", "--timeout", "soon"], "'soon' is not a valid float"),
    (["status", "Not A Job"], "JOB: 'Not A Job' is not a job id"),
    (["status", "unknown-job"], "there is no job 'unknown-job'"),
    (["retry", "--job-id", "job-1", "--errors", "netwrok"], "--errors: 'netwrok'"),
    (["retry"], "JOB: is missing"),
    (["retry", "job-1", "--job-id", "job-2"], "--job-id: 'job-2' differs from JOB"),
    (["retry", "job-1", "--items", "nowhere.txt"], "--items: nowhere.txt can't be read"),
    (["errors", "unknown-job"], "there is no job 'unknown-job'"),
    (["errors", "job-1", "--class", "netwrok"], "--class: 'netwrok'"),
    (["retry", "--job-id", "unknown-job"], "there is no job 'unknown-job'"),
    (["aggregate", "a", "b"], "use: slurmctl aggregate-files a b -o DATASET"),
    (["aggregate", "results/"], "use: slurmctl aggregate-files results/ -o DATASET"),
    (["aggregate", "results", "-o", "out"], "use: slurmctl aggregate-files results -o out"),
    (["aggregate", "a b/", "--schema", "s"], "aggregate-files 'a b/' -o DATASET --schema=s"),
    (["aggregate", "job-1", "--sort-by", "n"], "aggregate-files job-1 -o DATASET --sort-by=n"),
    (["aggregate", "in", "-o", "out", "--partition-by", "n"], "in -o out --partition-by=n"),
    (["aggregate-files", "results"], "Missing option '-o'"),
    (["aggregate-files", "nowhere", "-o", "out"], "PATH: nowhere does not exist"),
    (["aggregate-files", ".", "-o", "out", "--schema", "nowhere.yaml"], "nowhere.yaml can't"),
    (["aggregate", "unknown-job"], "there is no job 'unknown-job'"),
    (["gc", "job-1", "--older-than", "10ms"], "'10ms' is not an age; write 90m, 12h or 7d"),
    (["workers", "job-1"], "Missing option '--add'; see slurmctl workers --help"),
    (["workers", "job-1", "--add", "0"], "0 is not in the range x>=1"),
    (["logs", "unknown-job"], "there is no job 'unknown-job'"),
    (["limits", "--safe", "10/s", "--send-window", "-1.2"], "-1.2 is not in the range x>0"),
    (["limits"], "JOB: is missing"),
    (["submit", "nowhere.yaml"], "nowhere.yaml can't be read"),
    (["status", "job-1", "--site", "nowhere.yaml"], "site: nowhere.yaml can't be read"),
]

WRONG_CONFIGS: list[tuple[dict[str, Any], list[str]]] = [
    ({"bundel": 10}, ["bundel", "did you mean 'bundle'?"]),
    ({"bundle": "many"}, ["bundle", "'many'"]),
    ({"handler": None}, ["handler", "is missing"]),
    ({"handler": {"entry": "absent:handle", "code": "."}}, ["handler.entry", "absent.py"]),
    ({"input": {"path": "absent.jsonl", "key": "id"}}, ["absent.jsonl"]),
    ({"input": {"path": "items.jsonl", "key": "idd"}}, ["'idd'", "'id'"]),
    ({"input": {"path": "twice.jsonl", "key": "id"}}, ["'k3'", "row 1 and of row 3"]),
    ({"slurm": {"mem": "2 gigs"}}, ["slurm.mem", "'2 gigs'", "2G"]),
    ({"job_id": "No Good"}, ["job_id", "'No Good'"]),
]


def assert_one_line(err: str) -> str:
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("slurmctl: ")]
    assert err.splitlines()[-1] == line
    return line


@pytest.mark.parametrize(("arguments", "expected"), MISUSE)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(
    cli: Cli, arguments: list[str], expected: str
) -> None:
    ended = cli(*arguments)
    assert ended.code == ExitCode.USER_ERROR
    assert ended.out == ""
    assert expected in assert_one_line(ended.err)


@pytest.mark.parametrize(("changes", "expected"), WRONG_CONFIGS)
def test_a_wrong_config_is_named_and_leaves_nothing(
    cli: Cli, tmp_path: Path, changes: dict[str, Any], expected: list[str]
) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (wrong / "twice.jsonl").write_text('{"id": "k3"}\n{"id": "k4"}\n{"id": "k3"}\n')
    ended = cli("submit", write_config(wrong, **changes))
    assert ended.code == ExitCode.USER_ERROR
    line = assert_one_line(ended.err)
    assert [word for word in expected if word not in line] == []
    assert cli.slurm.names == []
    assert cli.submit().code == ExitCode.OK


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x80\x02binary", "can't be read (it is not text"),
        (b"a: 1\njob_id: 2025-02-30\n", "line 2: job_id: 2025-02-30: day is out of range"),
        (b"job_id: [", "is not YAML: line 1, column 10: "),
        (b"job_id: a\n\tbundle: 5\n", "line 2, column 1: found character"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [["submit"], ["aggregate-files", ".", "-o", "out", "--schema"], ["status", "j", "--site"]],
)
def test_a_file_that_is_not_yaml_is_refused_in_one_line(
    cli: Cli, tmp_path: Path, command: list[str], content: bytes, expected: str
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_bytes(content)
    ended = cli(*command, file)
    assert ended.code == ExitCode.USER_ERROR
    line = assert_one_line(ended.err)
    assert expected in line
    assert str(file) in line


def test_no_arguments_print_the_help(cli: Cli) -> None:
    ended = cli()
    assert ended.code == ExitCode.USER_ERROR
    assert "Commands:" in ended.out + ended.err


def test_a_service_that_is_away_is_one_line_and_exit_code_3(cli: Cli) -> None:
    cli.slurm.away = 1
    ended = cli.submit()
    assert ended.code == ExitCode.SERVICE_ERROR
    assert ended.err == "slurmctl: the login node is away\n"
    assert cli.submit().code == ExitCode.OK


def test_missing_credentials_are_a_user_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    empty_aws(monkeypatch)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    ended = cli("bootstrap")
    assert ended.code == ExitCode.USER_ERROR
    assert_one_line(ended.err)
    assert "Unable to locate credentials; credentials are looked for in AWS_*" in ended.err


def test_an_interrupt_reports_how_to_continue(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "submit", interrupted)
    ended = cli.submit()
    assert ended.code == ExitCode.INTERRUPTED
    assert "running the same command again continues" in ended.err


def test_a_bug_is_shown_with_its_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AssertionError("can't be")

    monkeypatch.setattr(api, "submit", broken)
    ended = cli.submit()
    assert ended.code == ExitCode.BUG
    assert "AssertionError: can't be" in ended.err
    assert ended.err.splitlines()[-1].startswith("slurmctl: this is a bug")


def test_a_reader_that_closes_the_output_is_not_a_bug() -> None:
    program = [str(Path(sys.executable).with_name("slurmctl")), "completion", "bash"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == ExitCode.READER_LEFT


def test_every_listed_command_exists() -> None:
    for name, (_, line) in app.COMMANDS.items():
        command = app.slurmctl.get_command(None, name)  # type: ignore[arg-type]  # not looked at
        assert command is not None
        assert command.name == name
        assert line.endswith(".")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ExpiredCredentials("they have expired", "renew them"), ExitCode.USER_ERROR),
        (WrongSetting("another region", "set aws.region"), ExitCode.USER_ERROR),
        (WrongClock("it is wrong", "use NTP"), ExitCode.SERVICE_ERROR),
    ],
)
def test_what_the_user_must_correct_has_the_exit_code_of_a_mistake(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: ServiceError, code: ExitCode
) -> None:
    def get(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(type(cli.world.rows), "get", get)
    ended = cli("status", "job-1")
    assert (ended.code, ended.err) == (code, f"slurmctl: {error}\n")

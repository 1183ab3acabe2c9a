"""What all commands have in common: an example, `--json` by its schema, and the exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from airflow_slurm_provider.cli.app import COMMANDS, ExitCode
from slurm_worker.errors import ServiceError
from tests.stack.settings import ROOT
from tests.unit.cli.conftest import Cli, Handler

SCHEMAS = ROOT / "docs" / "reference" / "output.schema.json"
Arguments = list[str]
Ready = Callable[[Cli], object]


def fresh(_cli: Cli) -> None:
    """Nothing was submitted yet."""


def running(cli: Cli) -> None:
    assert cli.submit().code == ExitCode.OK


def done(cli: Cli) -> None:
    running(cli)
    cli.work()


def paused(cli: Cli) -> None:
    running(cli)
    assert cli("pause", "job-1").code == ExitCode.OK


def published(cli: Cli) -> None:
    done(cli)
    assert cli("aggregate", "job-1").code == ExitCode.OK


def files(cli: Cli) -> None:
    (cli.config.parent / "results.jsonl").write_text('{"n": 1}\n')


def in_aws(cli: Cli) -> None:
    cli.enter_aws()


#: How each command is called, and what runs before it; CONFIG and FOLDER are paths.
CALLS: dict[str, list[tuple[Ready, Arguments]]] = {
    "plan": [(fresh, ["CONFIG"]), (fresh, ["CONFIG", "--item-seconds", "2"])],
    "submit": [(fresh, ["CONFIG"]), (done, ["CONFIG", "--wait"])],
    "status": [(running, ["job-1"]), (published, ["job-1"])],
    "wait": [(done, ["job-1"])],
    "watch": [(done, ["job-1"])],
    "retry": [
        (done, ["job-1", "--errors", "network", "--dry-run"]),
        (done, ["job-1", "--errors", "network"]),
        (done, ["job-1", "--errors", "timeout"]),
    ],
    "errors": [(done, ["job-1"])],
    "aggregate": [(done, ["job-1"])],
    "fetch": [(published, ["job-1", "FOLDER/fetched"])],
    "head": [(published, ["job-1", "-n", "3"])],
    "query": [(published, ["job-1", "SELECT count(*) AS n, avg(double) FROM dataset"])],
    "aggregate-files": [(files, ["FOLDER/results.jsonl", "-o", "FOLDER/dataset"])],
    "logs": [(running, ["job-1", "--worker", "101_0", "--output"])],
    "events": [(running, ["job-1"])],
    "cost": [(running, ["job-1"]), (done, ["job-1"])],
    "limits": [(running, ["job-1"]), (fresh, ["--safe", "600/min"])],
    "pause": [(running, ["job-1"]), (paused, ["job-1"])],
    "resume": [(paused, ["job-1"])],
    "workers": [(running, ["job-1", "--add", "1"])],
    "cancel": [(running, ["job-1"])],
    "completion": [(fresh, ["bash"])],
    "bootstrap": [(in_aws, ["--create-bucket"]), (in_aws, ["--dry-run", "--create-bucket"])],
    "doctor": [(done, ["--repair", "--job", "job-1", "--dry-run"]), (fresh, ["--iam"])],
    "gc": [(published, ["job-1", "--dry-run"])],
}
#: Commands that serve, and print no document.
SERVERS = {"dashboard"}
#: Commands that need no site, so that no job can be unknown to them.
WITHOUT_SITE = {"aggregate-files", "completion"}
#: Commands that read neither rows of the table nor any job.
WITHOUT_TABLE = WITHOUT_SITE | {"bootstrap", "plan"}
OF_A_JOB = sorted({*CALLS} - WITHOUT_TABLE - {"submit"})


def arguments(cli: Cli, words: Arguments) -> Arguments:
    folder = cli.config.parent
    return [
        word.replace("CONFIG", str(cli.config)).replace("FOLDER", str(folder)) for word in words
    ]


def schema_of(command: str) -> dict[str, Any]:
    schemas: dict[str, Any] = json.loads(SCHEMAS.read_text())
    assert command in schemas["$defs"], f"{SCHEMAS}: describe what slurmctl {command} prints"
    return {**schemas, "$ref": f"#/$defs/{command}"}


def each_call() -> list[Any]:
    return [
        pytest.param(command, ready, words, id=f"{command}-{number}")
        for command, calls in CALLS.items()
        for number, (ready, words) in enumerate(calls)
    ]


def test_every_command_is_in_the_table_here() -> None:
    assert {*CALLS} == {*COMMANDS} - SERVERS


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_an_example_and_the_common_options(cli: Cli, name: str) -> None:
    ended = cli(name, "--help")
    assert ended.code == ExitCode.OK
    assert f"slurmctl {name} " in ended.out.split("Example:")[1]
    assert [option for option in ("--json", "--site", "--profile") if option not in ended.out] == []


@pytest.mark.parametrize(("command", "ready", "words"), each_call())
def test_each_document_is_one_line_and_as_its_schema_says(
    cli: Cli, command: str, ready: Ready, words: Arguments
) -> None:
    ready(cli)
    ended = cli(command, *arguments(cli, words), "--json")
    assert ended.code == ExitCode.OK, ended.err
    jsonschema.validate(ended.json, schema_of(command), cls=jsonschema.Draft202012Validator)


def test_the_schemas_are_right_and_describe_every_name() -> None:
    schemas = json.loads(SCHEMAS.read_text())
    jsonschema.Draft202012Validator.check_schema(schemas)

    def check(where: str, schema: Any) -> None:
        if isinstance(schema, dict):
            if "properties" in schema:
                assert schema["additionalProperties"] is False, where
                assert {*schema["required"]} <= {*schema["properties"]}, where
            for name, part in schema.items():
                check(f"{where}/{name}", part)
        elif isinstance(schema, list):
            for number, part in enumerate(schema):
                check(f"{where}/{number}", part)

    check("#", schemas)
    assert {*COMMANDS} - SERVERS <= {*schemas["$defs"]}


@pytest.mark.parametrize("command", OF_A_JOB)
def test_an_unknown_job_is_exit_code_2(cli: Cli, command: str) -> None:
    (_, words), *_ = CALLS[command]
    named = ["unknown-job" if word == "job-1" else word for word in arguments(cli, words)]
    ended = cli(command, *named)
    assert ended.code == ExitCode.USER_ERROR, ended.err
    assert "there is no job 'unknown-job'" in ended.err
    assert ended.out == ""


@pytest.mark.parametrize("command", sorted({*CALLS} - WITHOUT_TABLE))
def test_a_table_that_is_away_is_exit_code_3(
    cli: Cli, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, words = CALLS[command][0]
    ready(cli)

    def away(*_: object, **__: object) -> None:
        raise ServiceError("the table is away")

    for verb in ("get", "query", "put_new", "update"):
        monkeypatch.setattr(cli.world.rows, verb, away)
    ended = cli(command, *arguments(cli, words))
    assert ended.code == ExitCode.SERVICE_ERROR, ended.err
    assert ended.err.splitlines()[-1] == "slurmctl: the table is away"


@pytest.mark.parametrize("command", ["submit", "wait", "watch", "resume", "workers", "cancel"])
def test_a_cluster_that_is_away_is_exit_code_3_and_the_same_command_works_later(
    cli: Cli, command: str
) -> None:
    _, words = CALLS[command][0]
    (fresh if command == "submit" else paused if command == "resume" else running)(cli)
    cli.slurm.away = 1
    ended = cli(command, *arguments(cli, words))
    assert ended.code == ExitCode.SERVICE_ERROR
    assert ended.err.splitlines()[-1] == "slurmctl: the login node is away"
    cli.clock.events = [cli.work]
    assert cli(command, *arguments(cli, words)).code == ExitCode.OK


def test_the_job_that_gave_up_tasks_is_exit_code_1(cli: Cli, handler: Handler) -> None:
    running(cli)
    cli.slurm.end("101", "NODE_FAIL")
    for command in ("wait", "watch"):
        assert cli(command, "job-1").code == ExitCode.JOB_FAILED
    assert cli("submit", cli.config, "--wait", "--timeout", "0").code == ExitCode.SERVICE_ERROR

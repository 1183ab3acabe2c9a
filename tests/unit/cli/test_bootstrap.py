"""`slurmctl bootstrap` says a line for each thing, and by its exit code whether jobs can run."""

from __future__ import annotations

from airflow_slurm_provider.cli.app import ExitCode
from tests.unit.cli.conftest import Cli


def test_created_and_existing_resources_are_reported_line_by_line(cli: Cli) -> None:
    cli.enter_aws()
    first = cli("bootstrap", "--create-bucket")
    assert first.code == ExitCode.OK, first.err
    lines = first.out.splitlines()
    assert lines[0].split() == [
        *("created", "table:", "table", "'t'", "with", "string", "keys", "pk", "and", "sk,"),
        *("on", "demand"),
    ]
    assert lines[-1] == "5 created"
    again = cli("bootstrap", "--create-bucket")
    assert again.code == ExitCode.OK
    assert again.out.splitlines()[-1] == "6 exists"


def test_a_missing_bucket_is_exit_code_1_with_the_fix(cli: Cli) -> None:
    cli.enter_aws()
    ended = cli("bootstrap")
    assert ended.code == ExitCode.JOB_FAILED
    assert "fix: create it with slurmctl bootstrap --create-bucket" in ended.out
    assert ended.out.splitlines()[-1] == "1 created, 1 missing"


def test_a_dry_run_creates_nothing(cli: Cli) -> None:
    cli.enter_aws()
    assert cli("bootstrap", "--create-bucket", "--dry-run").code == ExitCode.OK
    assert cli("bootstrap", "--dry-run").out.splitlines()[-1] == "1 would create, 1 missing"

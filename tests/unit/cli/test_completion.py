"""The shell completes commands, options, profiles and job ids; bash is asked for real."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from airflow_slurm_provider.cli import options
from airflow_slurm_provider.cli.app import ExitCode, slurmctl
from airflow_slurm_provider.cli.completion import SHELLS, VARIABLE
from airflow_slurm_provider.coordinator import services as services_module
from airflow_slurm_provider.coordinator.services import Services
from tests.unit.cli.conftest import Cli

SLURMCTL = Path(sys.executable).with_name("slurmctl")


def complete(words: str, position: int) -> list[str]:
    """What click answers to bash, in this process."""
    environment = {VARIABLE: "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(position)}
    ended = CliRunner().invoke(slurmctl, prog_name="slurmctl", env=environment)
    return [line.split(",", 1)[1] for line in ended.output.splitlines() if "," in line]


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_its_script(cli: Cli, shell: str) -> None:
    ended = cli("completion", shell)
    assert ended.code == ExitCode.OK
    assert f"{VARIABLE}={shell}_complete" in ended.out


def test_an_unknown_shell_is_refused_with_the_known_ones(cli: Cli) -> None:
    ended = cli("completion", "csh")
    assert ended.code == ExitCode.USER_ERROR
    assert "'bash', 'zsh', 'fish'" in ended.err


def test_job_ids_come_from_the_register_of_jobs(cli: Cli) -> None:
    for name in ("users-1", "users-2", "planes-1"):
        cli.clock.advance(1)
        cli.submit("--job-id", name)
    assert complete("slurmctl status u", 2) == ["users-2", "users-1"]
    assert complete("slurmctl retry --job-id p", 3) == ["planes-1"]
    assert complete("slurmctl events users-1 --fo", 3) == ["--follow"]


def test_nothing_is_completed_or_printed_if_the_table_is_away(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURMCTL_CONFIG", "nowhere.yaml")
    assert complete("slurmctl status u", 2) == []
    assert cli.capsys.readouterr().err == ""


def test_completion_does_not_wait_for_a_table_that_does_not_answer(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.submit()
    answer = threading.Event()

    def open_services(_site: object) -> Services:
        answer.wait()
        return cli.services

    monkeypatch.setattr(services_module, "open_services", open_services)
    assert options.newest_job_ids({}, "j", timeout_s=0.05) == []
    answer.set()
    assert options.newest_job_ids({}, "j", timeout_s=60.0) == ["job-1"]


def test_bash_completes_commands_and_profiles_for_real(tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "slurmctl"
    folder.mkdir(parents=True)
    for name in ("lab", "laptop", "cloud"):
        (folder / f"{name}.yaml").write_text("")
    program = f"""
set -eu
source <({SLURMCTL} completion bash)
ask() {{
  COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
  _slurmctl_completion slurmctl
  echo "${{COMPREPLY[*]}}"
}}
complete -p slurmctl | grep -q _slurmctl_completion
ask slurmctl re
ask slurmctl status --profile la
ask slurmctl events --fol
"""
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment["PATH"] = f"{SLURMCTL.parent}:{environment['PATH']}"
    ended = subprocess.run(
        ["bash", "--norc", "-c", program],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["retry resume", "lab laptop", "--follow"]

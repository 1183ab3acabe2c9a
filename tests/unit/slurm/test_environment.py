"""The command alone decides what Slurm does, whatever the account's variables are."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping

import pytest

from airflow_slurm_provider.slurm.transport import CLEAN, LocalTransport
from slurm_worker.node.slurm_variables import cleaned

HOSTILE = {
    "SBATCH_JOB_NAME": "other",
    "SBATCH_ARRAY_INX": "0-999",
    "SBATCH_HINT": "two\nSQUEUE_LINES=of text",
    "SQUEUE_FORMAT": "%i",
    "SCANCEL_STATE": "SUSPENDED",
    "SACCT_FORMAT": "User",
    "SINFO_FORMAT": "%P",
    "SCONTROL_ALL": "1",
    "SRUN_DEBUG": "3",
    "SALLOC_ACCOUNT": "x",
    "SLURM_JOB_ID": "7",
    "SLURM_CLUSTERS": "elsewhere",
    "SLURM_TIME_FORMAT": "relative",
    "SLURM_BITSTR_LEN": "4",
    "POSIXLY_CORRECT": "1",
    "LANGUAGE": "de",
    "LC_ALL": "de_DE.UTF-8",
    "LC_MESSAGES": "de_DE.UTF-8",
}
NEEDED = {
    "SLURM_CONF": "/etc/other/slurm.conf",
    "SLURM_JWT": "token",
    "PATH": "/usr/bin:/bin",
    "TZ": "Asia/Tokyo",
    "SLURMY": "the lab's own",
    "MY_SLURM_JOB_ID": "1",
}


def by_shell(environment: Mapping[str, str], shell: str = "sh") -> dict[str, str]:
    """As `SshTransport` cleans it, on the login node."""
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run(
        [path, "-c", f"{CLEAN} exec env -0"], env=dict(environment), capture_output=True, check=True
    )
    pairs = (pair.partition("=") for pair in done.stdout.decode().split("\0") if pair)
    return {name: value for name, _, value in pairs if name not in ("_", "PWD", "SHLVL", "OLDPWD")}


@pytest.mark.parametrize(
    "clean",
    [
        cleaned,
        by_shell,
        lambda given: by_shell(given, "bash"),
        lambda given: by_shell(given, "ksh"),
    ],
    ids=["local", "sh", "bash", "ksh"],
)
def test_only_variables_that_change_slurms_commands_are_removed(
    clean: Callable[[Mapping[str, str]], dict[str, str]],
) -> None:
    seen = clean({**HOSTILE, **NEEDED})
    english = {"LANG": "de_DE.UTF-8", "LC_MESSAGES": "C", "LC_TIME": "C"}
    assert seen == {**NEEDED, **english}


def test_a_function_in_place_of_a_command_is_removed() -> None:
    function = {"BASH_FUNC_squeue%%": "() { echo forged; }", "PATH": "/usr/bin:/bin"}
    assert not any("squeue" in name for name in cleaned(function))
    bash = shutil.which("bash") or pytest.skip("bash is not installed")
    program = f"{CLEAN} command -V squeue"
    done = subprocess.run([bash, "-c", program], env=function, capture_output=True, text=True)
    assert "function" not in done.stdout


def test_the_program_fits_in_one_line_of_any_login_shell() -> None:
    assert "\n" not in CLEAN
    assert "!" not in CLEAN


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_local_command_gets_no_variable_that_changes_slurms_commands(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, HOSTILE[name])
    seen = LocalTransport({name: HOSTILE[name]}).run(f'printf %s "${name}"').stdout
    assert seen in ("", "C")

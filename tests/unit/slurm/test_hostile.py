"""Names and values that try to be commands stay names and values.

The scripts are really run by a shell and the programs by ``sh``, with commands planted in
everything that a user can name: if one ran, its mark would exist.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airflow_slurm_provider.coordinator.spec.job_spec import load_config
from airflow_slurm_provider.slurm import submission
from airflow_slurm_provider.slurm.array_state import ArrayKey
from airflow_slurm_provider.slurm.client import SlurmClient
from airflow_slurm_provider.slurm.options import SlurmOptions
from airflow_slurm_provider.slurm.script import batch_name, quote, render_script
from airflow_slurm_provider.slurm.transport import CommandResult, LocalTransport
from slurm_worker.errors import UserError
from slurm_worker.protocol.keys import check_job_id

HOSTILE = [
    "; touch MARK",
    "$(touch MARK)",
    "`touch MARK`",
    "' ; touch MARK; '",
    '"; touch MARK; "',
    "a\ntouch MARK",
    "a\rtouch MARK",
    "| touch MARK",
    "&& touch MARK",
    "\\'; touch MARK #",
    "../../../MARK",
    "-rf /",
    "täsk ünï ☃",
    "a\x00b",
    "${IFS}touch${IFS}MARK",
    "~/MARK",
    "*",
    "",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_job_id_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"job_id: .* is not a job id; use 1 to 63 of"):
        check_job_id(value)
    with pytest.raises(UserError):
        load_config({"job_id": value, "input": {"path": "x", "key": "k"}, "handler": {}})


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_file_or_job_name_is_refused_before_any_command_runs(value: str) -> None:
    class Nothing(LocalTransport):
        def run(self, command: str, stdin: bytes = b"", timeout: float = 60.0) -> CommandResult:
            assert value not in command or not value, "refused before it is part of a command"
            return CommandResult(0, "/home/lab\n", "")

    client = SlurmClient(Nothing(), "lab")
    for call in (
        lambda: client.submit(value, "#!/bin/sh\n", "folder"),
        lambda: client.submit("name", "#!/bin/sh\n", value),
        lambda: client.put_file(value, b""),
        lambda: client.put_secret(value, "name", b""),
        lambda: client.output(value, "folder", 0, 10),
        lambda: client.find([value]),
        lambda: client.withdraw([value], "folder"),
        lambda: client.withdraw(["name"], value),
        lambda: client.cancel([ArrayKey("1", value)]),
    ):
        with pytest.raises(UserError, match="can't be the name of a"):
            call()


@pytest.mark.parametrize("value", HOSTILE)
def test_a_batch_jobs_label_becomes_a_plain_name(value: str) -> None:
    name = batch_name(value, "token")
    assert all(
        character.isascii() and (character.isalnum() or character in "._-") for character in name
    )
    assert name[0].isalnum()


@pytest.mark.parametrize("value", [text for text in HOSTILE if text])
@pytest.mark.parametrize("where", ["environment", "command", "option", "comment"])
def test_a_value_in_the_script_is_never_run(value: str, where: str, tmp_path: Path) -> None:
    options = {
        "option": {"partition": value},
        "comment": {"extra_args": [f"--comment={value}"]},
    }.get(where, {})
    try:
        script = render_script(
            SlurmOptions.from_mapping(options),
            name="name",
            workers=1,
            command=["printf", "%s", value if where == "command" else "done"],
            environment={"VALUE": value} if where == "environment" else {},
        )
    except UserError:
        return  # refused: nothing to run
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin" / "srun"
    srun.write_text('#!/bin/sh\nshift 2\necho "$VALUE" >&2\nexec "$@"\n')
    srun.chmod(0o755)
    ended = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin"], "something was run"
    if where == "command":
        assert ended.stdout.decode() == value
    if where == "environment":
        assert ended.stderr.decode() == f"{value}\n"


@pytest.mark.parametrize("name", [*HOSTILE, "A B", "1A", "A=B", "A-B"])
def test_a_variables_name_is_one_or_refused(name: str) -> None:
    with pytest.raises(UserError, match="is not the name of an environment variable"):
        render_script(
            SlurmOptions(), name="n", workers=1, command=["true"], environment={name: "x"}
        )


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_is_one_word_or_refused(value: str) -> None:
    try:
        quoted = quote(value)
    except UserError:
        return
    ended = subprocess.run(["sh", "-c", f"printf '%s' {quoted}"], capture_output=True, check=True)
    assert ended.stdout.decode() == value


@pytest.mark.parametrize("value", [text for text in HOSTILE if text and "\x00" not in text])
def test_the_programs_on_the_login_node_take_any_argument_as_text(
    value: str, tmp_path: Path
) -> None:
    command = submission.one_line('printf "%s" "$1"', value)
    ended = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=True)
    assert ended.stdout == value.encode()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [text for text in HOSTILE if not text.startswith("-")])
def test_extra_arguments_are_options(value: str) -> None:
    with pytest.raises(UserError, match="extra_args"):
        SlurmOptions.from_mapping({"extra_args": [value]})

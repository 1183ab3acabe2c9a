from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_slurm_provider.slurm.options import SlurmOptions
from airflow_slurm_provider.slurm.script import batch_name, batch_script, quote, render_script
from airflow_slurm_provider.slurm.submission import guarded
from slurm_worker.errors import UserError

GOLDEN = Path(__file__).with_name("golden_script.sh")
HOSTILE = ["$(touch x)", "`id`", "a b", "'; rm -rf /; '", '"', "#", "\\", "$HOME", "!!", "ü", ""]


def render(**changes: object) -> str:
    parts: dict[str, object] = {
        "options": SlurmOptions(),
        "name": "n",
        "workers": 1,
        "command": ["true"],
        "environment": {},
        **changes,
    }
    return render_script(parts.pop("options"), **parts)  # type: ignore[arg-type]  # by name


def test_the_script_equals_the_reviewed_one() -> None:
    options = SlurmOptions.from_mapping(
        {
            "partition": "main",
            "time": "02:00:00",
            "mem": "2G",
            "cpus_per_task": 4,
            "gres": "gpu:1",
            "throttle": 10,
            "grace": 180,
            "extra_args": ['--comment=it\'s the "first" run'],
            "setup": ["module load python/3.12"],
        }
    )
    script = render_script(
        options,
        name="flights-2013.r0s1.0a1b2c",
        workers=40,
        command=[
            "python3",
            "/home/lab/.airflow-slurm/worker-00ff.pyz",
            "run",
            "--config",
            "s3://b/k",
        ],
        environment={"AWS_DEFAULT_REGION": "eu-west-1", "NOTE": "two words"},
    )
    assert script == GOLDEN.read_text()


@pytest.mark.parametrize("value", HOSTILE)
def test_the_shell_sees_hostile_values_as_they_are(value: str, tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$VALUE"\nfor each; do printf "%s\\n" "$each"; done\n'
    )
    srun.chmod(0o755)
    script = render(command=["run", value], environment={"VALUE": value})
    ended = subprocess.run(
        ["/bin/bash", "-c", script],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    lines = ended.stdout.split("\n")
    assert (lines[0], lines[-3], lines[-2]) == (value, "run", value)
    assert ended.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["srun"]


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "\x00", "\x1b[0m", "\x7f"])
@pytest.mark.parametrize("where", ["command", "environment", "name", "options"])
def test_a_control_character_is_refused_everywhere(value: str, where: str) -> None:
    changes: dict[str, object] = {
        "command": ["run", value],
        "environment": {"VALUE": value},
        "name": value,
        "options": SlurmOptions(partition=value),
    }
    with pytest.raises(UserError, match="control characters"):
        render(**{where: changes[where]})


def test_a_backslash_that_sbatch_would_drop_is_refused() -> None:
    with pytest.raises(UserError, match="holds a backslash"):
        render(options=SlurmOptions(extra_args=("--comment=a\\b",)))


@pytest.mark.parametrize("name", ["a b", "A;id", "1A", "", "A=B"])
def test_a_variable_needs_a_name(name: str) -> None:
    with pytest.raises(UserError, match="not the name of an environment variable"):
        render(environment={name: "x"})


@given(
    st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]))
)
def test_quoting_is_undone_by_the_shells_rules(value: str) -> None:
    assert shlex.split(quote(value)) == [value]


def test_the_command_prefix_comes_before_the_workers_command() -> None:
    options = SlurmOptions.from_mapping({"command_prefix": ["apptainer", "exec", "my image.sif"]})
    last = render(options=options, command=["python3", "w.pyz"]).splitlines()[-1]
    assert last.endswith(" apptainer exec 'my image.sif' python3 w.pyz")


def test_setup_lines_can_use_the_sites_module_command(
    tmp_path: Path,
) -> None:
    (tmp_path / "init").mkdir()
    (tmp_path / "init" / "bash").write_text('module() { echo "module $*"; }\n')
    (tmp_path / "srun").write_text("#!/bin/sh\numask\n")
    (tmp_path / "srun").chmod(0o755)
    options = SlurmOptions.from_mapping({"setup": ["module load python/3.12", "umask 027"]})
    text = render_script(options, name="n", workers=1, command=["true"], environment={})
    outputs = [
        subprocess.run(
            ["bash", "-c", text],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **site},
            capture_output=True,
            text=True,
            check=True,
        )
        for site in ({"MODULESHOME": str(tmp_path)}, {})
    ]
    assert outputs[0].stdout == "module load python/3.12\n0027\n"
    assert outputs[1].stdout == "0027\n"
    assert "module" in outputs[1].stderr, "where there is none, bash says so"


# --- a script of the user's own


def script(body: str, array: str = "0", **options: object) -> list[str]:
    return batch_script(
        SlurmOptions.from_mapping(options), name="job.abc", array=array, body=body, environment={}
    ).splitlines()


def test_our_options_come_after_the_users_and_override_them() -> None:
    lines = script("#!/bin/sh\n#SBATCH --job-name=mine --mem=1G\n# a comment\n\necho hello\n")
    assert lines == [
        "#!/bin/sh",
        "#SBATCH --job-name=mine --mem=1G",
        "# a comment",
        "",
        "#SBATCH --job-name=job.abc",
        "#SBATCH --array=0",
        "#SBATCH --output=worker-%a.log",
        "#SBATCH --open-mode=append",
        "echo hello",
    ]


def test_a_script_without_a_shebang_gets_bash() -> None:
    assert script("hostname")[0] == "#!/bin/bash"
    assert script("hostname")[-1] == "hostname"


def test_directives_below_a_line_of_spaces_or_an_indented_comment_still_count() -> None:
    body = "#!/bin/bash\n  \n  # the lab's\n#SBATCH --mem=1G\n\techo hello\n"
    lines = guarded("\n".join(script(body))).splitlines()
    guard = next(n for n, line in enumerate(lines) if "exit 143" in line)
    directives = [n for n, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert len(directives) == 5
    assert max(directives) < guard < lines.index("\techo hello")


def test_options_and_variables_are_quoted() -> None:
    lines = batch_script(
        SlurmOptions.from_mapping({"partition": "a; rm -rf b", "setup": ["module load x"]}),
        name="job.abc",
        array="0-3",
        body="true",
        environment={"GREETING": "it's $(me)"},
    ).splitlines()
    assert "#SBATCH '--partition=a; rm -rf b'" in lines
    assert "export GREETING='it'\"'\"'s $(me)'" in lines
    assert lines.index("module load x") < lines.index("true")


@pytest.mark.parametrize("array", ["0", "0-9", "1,3,5", "0-9:2", "0-99%10", "1-3,7%2"])
def test_array_takes_what_sbatch_takes(array: str) -> None:
    assert f"#SBATCH --array={array}" in script("true", array)


@pytest.mark.parametrize("array", ["", "a", "0-", "-1", "0;1", "0 1", "0%", "1-2-3", "0\n"])
def test_an_invalid_array_is_refused(array: str) -> None:
    with pytest.raises(UserError, match=r"array: .* is not a list of elements; write"):
        script("true", array)


def test_the_throttle_goes_into_the_array() -> None:
    assert "#SBATCH --array=0-9%4" in script("true", "0-9", throttle=4)


def test_an_empty_script_is_refused() -> None:
    with pytest.raises(UserError, match="script: is empty"):
        script(" \n")


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("dag.task", "dag.task.abc"),
        ("täsk; rm -rf /", "t-sk-rm--rf-.abc"),
        ("../../etc", "etc.abc"),
        ("-x", "x.abc"),
        ("", "job.abc"),
        ("a" * 300, "a" * 150 + ".abc"),
    ],
)
def test_a_batch_name_is_valid_for_slurm_and_as_a_folder(label: str, name: str) -> None:
    assert batch_name(label, "abc") == name


def test_a_command_prefix_is_refused_for_a_batch_job() -> None:
    with pytest.raises(UserError, match=r"slurm\.command_prefix: is only for backfills"):
        script("true", command_prefix=["apptainer"])

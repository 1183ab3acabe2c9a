"""A batch script of the user's own becomes an array that we can find and watch."""

from __future__ import annotations

import pytest

from airflow_slurm_provider.slurm.array_state import ArrayState, Element
from airflow_slurm_provider.slurm.batch import batch_name, batch_script, failure, has_ended
from airflow_slurm_provider.slurm.options import SlurmOptions
from airflow_slurm_provider.slurm.states import ElementState
from slurm_worker.errors import UserError

S = ElementState


def script(body: str, array: str = "0", **options: object) -> list[str]:
    return batch_script(
        SlurmOptions.from_mapping(options), name="job.abc", array=array, body=body, environment={}
    ).splitlines()


def test_our_options_stand_behind_the_users_so_that_they_count() -> None:
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


def test_a_line_without_a_shell_gets_one() -> None:
    assert script("hostname")[0] == "#!/bin/bash"
    assert script("hostname")[-1] == "hostname"


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
def test_elements_are_given_as_sbatch_takes_them(array: str) -> None:
    assert f"#SBATCH --array={array}" in script("true", array)


@pytest.mark.parametrize("array", ["", "a", "0-", "-1", "0;1", "0 1", "0%", "1-2-3", "0\n"])
def test_elements_that_are_none_are_refused(array: str) -> None:
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
def test_a_name_holds_what_slurm_and_a_folder_may_be_called(label: str, name: str) -> None:
    assert batch_name(label, "abc") == name


def array(*states: ElementState, alive: int = 0, unknown: bool = False) -> ArrayState:
    elements = {n: Element(state, "3:0") for n, state in enumerate(states)}
    return ArrayState("7", elements, alive, unknown)


def test_an_array_is_done_when_every_element_completed() -> None:
    assert failure(array(S.COMPLETED, S.COMPLETED)) == ""
    assert has_ended(array(S.COMPLETED))
    assert not has_ended(array(S.COMPLETED, S.RUNNING, alive=1))
    assert not has_ended(array(unknown=True))


def test_a_failure_names_states_element_and_exit_code() -> None:
    why = failure(array(S.COMPLETED, S.FAILED, S.OUT_OF_MEMORY))
    assert why == (
        "array 7: 2 of 3 elements failed (1 FAILED, 1 OUT_OF_MEMORY); element 1 exited with 3:0"
    )
    assert "no record" in failure(array())


def test_a_batch_job_takes_no_prefix_of_a_worker() -> None:
    with pytest.raises(UserError, match=r"slurm\.command_prefix: is only for backfills"):
        script("true", command_prefix=["apptainer"])

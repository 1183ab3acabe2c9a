"""The state of an array as a whole."""

from __future__ import annotations

from airflow_slurm_provider.slurm.array_state import ArrayState, Element
from airflow_slurm_provider.slurm.states import ElementState

S = ElementState


def array(*states: ElementState, alive: int = 0, unknown: bool = False) -> ArrayState:
    elements = {n: Element(state, "3:0") for n, state in enumerate(states)}
    return ArrayState("7", elements, alive, unknown)


def test_an_array_is_done_when_every_element_completed() -> None:
    assert array(S.COMPLETED, S.COMPLETED).failure() == ""
    assert array(S.COMPLETED).ended
    assert not array(S.COMPLETED, S.RUNNING, alive=1).ended
    assert not array(unknown=True).ended


def test_a_failure_names_states_element_and_exit_code() -> None:
    why = array(S.COMPLETED, S.FAILED, S.OUT_OF_MEMORY).failure()
    assert why == (
        "array 7: 2 of 3 elements failed (1 FAILED, 1 OUT_OF_MEMORY); element 1 exited with 3:0"
    )
    assert "no record" in array().failure()

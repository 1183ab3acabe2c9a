from __future__ import annotations

import logging

import pytest

from airflow_slurm_provider.slurm.states import ElementState, parse_state
from slurm_worker.errors import ErrorClass

S = ElementState


@pytest.mark.parametrize("state", [state for state in S if state is not S.UNKNOWN])
def test_every_state_is_parsed(state: ElementState) -> None:
    assert parse_state(state.value) is state
    assert parse_state(f" {state.value.lower()} ") is state


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("CANCELLED by 1001", S.CANCELLED),
        ("CANCELLED+", S.CANCELLED),
        ("OUT_OF_ME+", S.OUT_OF_MEMORY),
        ("NODE_FAIL", S.NODE_FAIL),
        ("COMPLETED", S.COMPLETED),
    ],
)
def test_states_with_additions_or_cut_off_are_parsed(text: str, state: ElementState) -> None:
    assert parse_state(text) is state


def test_only_states_of_ended_elements_are_terminal() -> None:
    assert {state for state in S if state.terminal} == {
        S.BOOT_FAIL,
        S.CANCELLED,
        S.COMPLETED,
        S.DEADLINE,
        S.FAILED,
        S.NODE_FAIL,
        S.OUT_OF_MEMORY,
        S.PREEMPTED,
        S.REVOKED,
        S.TIMEOUT,
    }


@pytest.mark.parametrize("text", ["HYPERSPACE", "COMPL+", "", "+"])
def test_an_unknown_state_counts_as_alive_with_one_warning(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    parse_state.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [parse_state(text) for _ in range(3)] == [S.UNKNOWN] * 3
    assert not S.UNKNOWN.terminal
    assert [repr(text) in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(
    ("state", "error_class"),
    [
        (S.OUT_OF_MEMORY, ErrorClass.OUT_OF_MEMORY),
        (S.TIMEOUT, ErrorClass.WALLTIME),
        (S.DEADLINE, ErrorClass.WALLTIME),
        (S.PREEMPTED, ErrorClass.PREEMPTED),
        (S.NODE_FAIL, ErrorClass.NODE_FAILURE),
        (S.BOOT_FAIL, ErrorClass.NODE_FAILURE),
        (S.CANCELLED, ErrorClass.CANCELLED),
        (S.FAILED, ErrorClass.WORKER_CRASH),
        (S.COMPLETED, None),
        (S.RUNNING, None),
    ],
)
def test_each_failed_state_has_its_error_class(
    state: ElementState, error_class: ErrorClass | None
) -> None:
    assert state.error_class is error_class

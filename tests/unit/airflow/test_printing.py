"""What handlers and Slurm say reaches a task's log without its control characters."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

from airflow_slurm_provider.airflow_errors import as_airflow_failures, task_log
from airflow_slurm_provider.operators.deferral import progress_of
from slurm_worker.errors import UserError
from tests.unit.worker.test_printable import HOSTILE, is_visible


class Operator:
    log = logging.getLogger("task")


def test_control_characters_in_a_tasks_log_are_escaped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        task_log(Operator())(f"100 % {HOSTILE}")
    assert caplog.messages[0].startswith(r"100 % a\x1b[2J")
    assert is_visible(caplog.messages[0])


@pytest.mark.parametrize("event", [{"status": "stalled", "message": HOSTILE}, {HOSTILE: 1}, None])
def test_control_characters_in_the_reason_of_a_failed_task_are_escaped(event: Any) -> None:
    with pytest.raises(AirflowException) as caught:
        progress_of(event)
    assert is_visible(str(caught.value))


def test_control_characters_in_our_own_errors_are_escaped() -> None:
    with pytest.raises(AirflowFailException) as caught, as_airflow_failures():
        raise UserError(HOSTILE)
    assert is_visible(str(caught.value))
